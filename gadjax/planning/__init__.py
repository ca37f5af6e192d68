"""What a run will need on machines that are not here: its own programs, compiled ahead of time and read."""
