"""What is wrong with this machine, found by doing what a training does."""
