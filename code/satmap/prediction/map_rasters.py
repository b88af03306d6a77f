"""Sort the rasters of a user into maps: layers with a contrast stretch, mosaics and their names.

Also describes the maps, and warns about rasters that are unlike the training images.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from satmap.data.layers import Layer, Stretch, find_layers, stretched
from satmap.data.mosaic import Mosaic
from satmap.data.sources import Source
from satmap.io.text import counted, public_address
from satmap.prediction.stretches import KeptStretches
from satmap.weights.members import WeightFile, trained_bands

# Warn if the mean of a band differs from the training's by this many of its standard deviations. Of
# 137 images of eight real data sets, with the usual stretch, one reaches this: it is half white.
_FAR_BRIGHTNESS = 1.5
# Warn if sources were enlarged by more than this factor.
_FAR_SIZE = 2.0


def layers_of_networks(
    sources: Sequence[Source], channels: Collection[int], bands: Sequence[int] | None
) -> tuple[list[Layer], dict[str, str]]:
    """Sort rasters into layers, each with as many channels as its bands allow.

    Args:
        sources: in the user's order.
        channels: numbers of channels of the networks.
        bands: as for :func:`find_layers`, which also describes the result.
    """
    layers: list[Layer] = []
    faults: dict[str, str] = {}
    left = list(sources)
    for number in sorted(channels, reverse=True):
        found, faults = find_layers(left, number, bands)
        layers += found
        left = [source for source in left if source.name in faults]
    place = {source.name: index for index, source in enumerate(sources)}
    return sorted(layers, key=lambda layer: place[layer.sources[0].name]), faults


def of_common_bands(mosaic: Mosaic) -> Mosaic:
    """Return a mosaic in which all layers have as many bands as that with the fewest."""
    count = min(len(layer.bands) for layer in mosaic.layers)
    layers = []
    for layer in mosaic.layers:
        assert layer.stretch is not None
        stretch = Stretch(layer.stretch.low[:count], layer.stretch.high[:count])
        layers.append(replace(layer, bands=layer.bands[:count], stretch=stretch))
    return replace(mosaic, layers=tuple(layers))


def left_out_warnings(mosaics: Mapping[str, Mosaic], files: Sequence[WeightFile]) -> list[str]:
    """Warn about networks that need more bands than the maps have."""
    most = max(file.in_channels for file in files)
    few = [name for name, mosaic in mosaics.items() if len(mosaic.layers[0].bands) < most]
    if not few:
        return []
    count = min(len(mosaics[name].layers[0].bands) for name in few)
    left_out = sum(file.in_channels > count for file in files)
    where = f"{few[0]}" + (f" and {len(few) - 1} other maps" if len(few) > 1 else "")
    return [
        f"{left_out} of {len(files)} networks need {most} bands and were left out for {where}, "
        f"with {count} bands in some or all images"
    ]


def stretched_layers(
    layers: Iterable[Layer],
    fixed: tuple[float, float] | None,
    percentiles: tuple[float, float],
    faults: dict[str, str],
    kept: KeptStretches,
) -> list[Layer]:
    """Return the layers with their stretch, a fixed one or that of two percentiles of a sample.

    ``faults`` gets rasters that cannot be read.
    """
    if fixed is not None:
        low, high = fixed
        return [
            replace(layer, stretch=Stretch((low,) * len(layer.bands), (high,) * len(layer.bands)))
            for layer in layers
        ]

    def sampled(layer: Layer) -> Layer | None:
        return next(iter(stretched([layer], *percentiles, faults)), None)

    return kept.apply(layers, percentiles, sampled, faults)


def named_mosaics(mosaics: Iterable[Mosaic]) -> dict[str, Mosaic]:
    """Give every map an id: ``map`` for that of all placed rasters, else the file's name.

    Characters that a CSV or a terminal cannot hold become ``_``.
    """
    named: dict[str, Mosaic] = {}
    for mosaic in mosaics:
        path = Path(public_address(mosaic.layers[0].sources[0].name))
        placed = mosaic.georeference is not None
        name = "map" if placed else _plain(path.stem)
        while name in named:
            path = path.parent
            name = f"{_plain(path.name) or 'image'}-{name}"
        named[name] = mosaic
    return named


def _plain(name: str) -> str:
    shown = "".join(char if char.isprintable() and char not in ',"' else "_" for char in name)
    return re.sub("^#", "_", shown.strip())


def describe(mosaics: Mapping[str, Mosaic], gsd: float | None) -> list[str]:
    """Print the maps; return warnings about sources that differ much from the training images."""
    warnings = []
    for map_id, mosaic in list(mosaics.items())[:20]:
        rasters = sum(len(layer.sources) for layer in mosaic.layers)
        size = f"{mosaic.width} x {mosaic.height} pixels"
        if mosaic.georeference is None:
            print(f"{map_id}: {size}, no georeference", flush=True)
            continue
        metres = mosaic.georeference.gsd_m
        print(f"{map_id}: {counted(rasters, 'raster')}, {size} of {metres:.3g} m", flush=True)
        sizes = [layer.georeference.gsd_m for layer in mosaic.layers if layer.georeference]
        if not mosaic.is_exact:
            print(
                f"{map_id}: resampled from {min(sizes):.3g} m"
                + (f" to {max(sizes):.3g} m" if max(sizes) > 1.01 * min(sizes) else "")
                + f" per pixel to {metres:.3g} m",
                flush=True,
            )
        if gsd and max(sizes) > _FAR_SIZE * gsd:
            warnings.append(
                f"the networks were trained with {gsd:.2g} m per pixel, and some images have "
                f"{max(sizes):.2g} m: expect poor results there"
            )
    if len(mosaics) > 20:
        print(f"... and {len(mosaics) - 20} other images without georeference", flush=True)
    return warnings


def brightness_warnings(layers: Sequence[Layer], files: Sequence[WeightFile]) -> list[str]:
    """Warn about rasters whose stretched bands are unlike those of the training images."""
    statistics = trained_bands(files)
    if statistics is None:
        return []
    warnings = []
    for layer in layers:
        means = layer.sample_means()
        far = [
            f"band {band} has the mean {found:.0f} instead of {mean:.0f}"
            for band, found, mean, spread in zip(layer.bands, means, *statistics, strict=False)
            if abs(found - mean) > _FAR_BRIGHTNESS * spread
        ]
        if far:
            warnings.append(
                f"{layer.name}: its brightness is unlike that of the training images "
                f"({', '.join(far)}, of 255). Check --bands and --stretch"
            )
    return warnings
