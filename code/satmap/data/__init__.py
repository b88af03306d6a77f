"""Training and test data: directory layouts, imagery, folds, the chip cache and crops."""
