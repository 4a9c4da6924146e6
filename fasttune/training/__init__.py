"""From a plan to a trained adapter."""
