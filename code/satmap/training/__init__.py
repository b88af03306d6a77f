"""Training: schedules, the training loop, checkpoints and validation."""
