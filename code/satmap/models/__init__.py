"""Networks and their weight files; knows nothing of chips or labels."""
