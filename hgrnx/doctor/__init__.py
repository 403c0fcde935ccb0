"""What this machine has, and what a recipe will need of it."""
