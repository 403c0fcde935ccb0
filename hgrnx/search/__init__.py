"""What a search knows, without Ray: its record of trials, what to try next, what it cost and what it found."""
