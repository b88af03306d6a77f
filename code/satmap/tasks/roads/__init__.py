"""Roads: road graphs with travel times."""
