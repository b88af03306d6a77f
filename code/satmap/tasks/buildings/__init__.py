"""Building footprints."""
