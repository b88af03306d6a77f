"""Reading and writing of files: atomic writes, JSON, GeoJSON, GDAL, text."""
