"""What made a file: its bytes' SHA-256, the machine and the manifest beside it."""
