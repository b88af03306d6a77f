"""From probability planes to buildings: instances, polygons, confidence."""
