"""Map one image with trained networks and print what was found.

    python examples/map_image.py WEIGHTS IMAGE [OUT.gpkg]

WEIGHTS is a directory of weights (or one file), IMAGE a raster. With OUT the result is written with
geopandas, in any format that it knows (``pip install 'satmap[gis]'``).
"""

import sys

import satmap


def main() -> None:
    """Map the image that the command line names."""
    weights, image, *outputs = sys.argv[1:]
    predictor = satmap.load(weights, device="cpu")
    found = predictor(image)
    maps = predictor.probabilities(image)
    for name in maps.names:
        print(f"{name}: mean probability {maps[name].mean() / 255:.3f}")
    if hasattr(found, "to_networkx"):
        graph = found.to_networkx()
        minutes = sum(time for *_, time in graph.edges(data="travel_time_s")) / 60
        print(f"{graph.number_of_edges()} roads, {minutes:.1f} minutes of driving")
    else:
        print(f"{len(found)} buildings")
    for output in outputs:
        found.to_geodataframe().to_file(output)
        print(output)


if __name__ == "__main__":
    main()
