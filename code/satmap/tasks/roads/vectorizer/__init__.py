"""From probability maps to a road graph."""
