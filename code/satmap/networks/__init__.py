"""Network architectures, and the average of networks, augmentations and windows (``ensemble``)."""
