"""Read and write files: atomic writes, checksums, GeoJSON, COCO, GDAL and text."""
