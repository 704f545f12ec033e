"""What a stage can learn: each objective is a ``Task`` of the training loop."""
