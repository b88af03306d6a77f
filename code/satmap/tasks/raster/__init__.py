"""Building masks: one raster per image, scored pixel by pixel."""
