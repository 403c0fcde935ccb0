"""Speed and memory on this machine, beside the implementations installed on it."""
