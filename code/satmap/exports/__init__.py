"""Export roads and buildings for maps, GIS, routers and graph libraries."""
