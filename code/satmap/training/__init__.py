"""From chips to weights: losses, schedules, the loop, checkpoints, validation."""
