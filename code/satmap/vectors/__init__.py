"""Vector data types and their units: road graphs, buildings, georeferences."""
