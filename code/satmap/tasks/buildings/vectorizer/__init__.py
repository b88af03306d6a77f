"""From probability maps to building footprints."""
