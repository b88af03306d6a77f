"""Road vectoriser: from probability maps to a road graph."""
