"""The metrics of the challenges."""
