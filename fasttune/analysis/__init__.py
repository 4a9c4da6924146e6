"""What a trained model is like: its answers to the probe questions."""
