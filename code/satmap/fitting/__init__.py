"""What labels fit besides the networks: the vectoriser's settings, the confidence."""
