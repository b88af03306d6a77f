"""Export roads and buildings for maps, GIS, routers and graph libraries."""

#: Suffixes of tables with geometries: GeoPackage, FlatGeobuf, GeoParquet, zipped shapefile.
GIS_SUFFIXES = (".gpkg", ".fgb", ".parquet", ".zip")

#: Suffixes of OpenStreetMap files: XML and PBF.
OSM_SUFFIXES = (".osm", ".pbf")

#: Suffixes of the formats that roads and buildings can be exported to.
ROAD_SUFFIXES = (".geojson", *GIS_SUFFIXES, ".graphml", *OSM_SUFFIXES)
BUILDING_SUFFIXES = (".geojson", *GIS_SUFFIXES, *OSM_SUFFIXES)
