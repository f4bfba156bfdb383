"""What training leaves: the run folder, checkpoints, and models opened from any kind of path."""
