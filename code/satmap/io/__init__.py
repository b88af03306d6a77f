"""Read and write files: atomic writes, checksums, JSON, GeoJSON, COCO, GDAL and text."""
