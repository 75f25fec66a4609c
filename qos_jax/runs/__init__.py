"""What every run has: its folder, settings, progress, checkpoints, statistics and plot style."""
