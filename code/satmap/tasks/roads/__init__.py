"""Road extraction: road graphs with travel times."""
