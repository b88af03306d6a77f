"""Buildings: footprints."""
