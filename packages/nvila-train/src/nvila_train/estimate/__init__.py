"""What a training step takes, before it is run."""
