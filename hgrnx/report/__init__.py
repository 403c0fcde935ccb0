"""Tables and figures of finished runs, from the files of their folders alone."""
