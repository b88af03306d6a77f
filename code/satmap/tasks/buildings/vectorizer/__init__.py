"""Building vectoriser: from probability maps to footprints."""
