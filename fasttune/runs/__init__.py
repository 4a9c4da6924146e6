"""What a run leaves on disk: its folder, its documents, checkpoints, history, and the figures they come to."""
