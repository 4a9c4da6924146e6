"""What a trained model is like: probe questions answered by the file that will be served."""
