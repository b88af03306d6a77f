"""From probability planes to road graphs: arrays in, ``RoadGraph`` out; no networks, no files."""
