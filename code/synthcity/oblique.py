"""Render a tile from a view angle: visibility, sunlight, shadows and sensor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthcity.city import City
from synthcity.noise import Grid, Window
from synthcity.paint import LEAF_SHADE, Canvas, Textures, reflected
from synthcity.plan import LEVEL_M, Float32, Rng
from synthcity.solids import MAX_INCIDENCE, sunlight
from synthcity.spectra import Material, Sensor, light, to_counts
from synthcity.strokes import Sun
from synthcity.views import GROUND, Skyline, View, ViewAngle, render_view

#: Height of a storey, metres.
STOREY_M = 3.1
# Painted margin around the tile, pixels. No blur reaches further.
_MARGIN = 16
# Margin of the sun's view around the tile, metres. Objects in the margin may throw shadows into the
# tile, or lean into the tile and need their own shading.
_SUN_MARGIN_M = 130.0
# A point is in shadow if it lies at least this far below the surface that the sun sees, metres:
# about two pixels of the steepest lit surface.
_SHADE_BIAS_M = 0.8
# Ambient light on walls: half of the sky and some light from the bright ground.
_WALL_SKY = 0.85
# Sigma of the blur by optics and resampling, in native pixels.
_SPREAD = 0.48
# Pixel size of the colour bands relative to the panchromatic band.
_COLOUR_PIXELS = 4.0
# Tangent of the largest off-nadir angle for which decks are painted beyond the tile.
_MAX_SLOPE = 1.4
# Lower and upper edge of windows as fractions of a storey.
_SILL, _LINTEL = 0.30, 0.78


@dataclass(frozen=True)
class Facets:
    """Properties of all surfaces: one entry per face, one per crown, and a last one for the ground.

    So ``views.GROUND`` is a valid index.
    """

    material: NDArray[np.uint8]
    tone: Float32
    incidence: Float32  # sunlight relative to that on level ground
    sky: Float32  # visible fraction of the sky
    building: NDArray[np.int32]  # index of the building, -1 for bridges, crowns and the ground
    wall: NDArray[np.bool_]
    deck: NDArray[np.uint8]  # number of the painted surface that covers it, 0 for none
    side: Float32  # (n, 2, 2), a corner of a wall (metres) and the wall's direction (unit vector)
    bay_m: Float32  # width of a window bay, 0 for none
    glazing: Float32  # fraction of a bay's width covered by its window

    @classmethod
    def of(cls, skyline: Skyline, sun: Sun) -> Self:
        """Compute the properties of all faces under a sun."""
        faces, more = skyline.faces, len(skyline.crowns) + 1
        wall = np.abs(skyline.normals[:, 2]) < 1e-6
        leaves = [crown.material for crown in skyline.crowns]
        starts, ends = (np.array([f.rings[0][i, :2] for f in faces]).reshape(-1, 2) for i in (0, 1))
        steps = ends - starts
        along = steps / np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-9)[:, None]

        def padded(values: ArrayLike, rest: float) -> NDArray[Any]:
            first = np.asarray(values)
            return np.concatenate([first, np.full((more, *first.shape[1:]), rest, first.dtype)])

        incidence = np.clip(sunlight(skyline.normals, sun), 0, MAX_INCIDENCE)
        return cls(
            np.array([*(f.material for f in faces), *leaves, Material.DRY_GRASS], dtype=np.uint8),
            padded(np.array([f.tone for f in faces], dtype=np.float32), 1.0),
            padded(incidence.astype(np.float32), 1.0),
            padded(np.where(wall, np.float32(_WALL_SKY), np.float32(1)), 1.0),
            padded(skyline.owner, -1),
            padded(wall, 0),
            padded(np.array([f.deck for f in faces], dtype=np.uint8), 0),
            padded(np.stack([starts, along], axis=1).astype(np.float32), 0),
            padded(np.array([f.bay_m for f in faces], dtype=np.float32), 0),
            padded(np.array([f.glazing for f in faces], dtype=np.float32), 0),
        )


@dataclass(frozen=True)
class Site:
    """Data of a tile that is the same for all view angles."""

    window: Window  # the tile's pixels
    grid: Grid  # pixel size
    skyline: Skyline  # buildings, bridges and trees
    facets: Facets  # material and lighting of each surface of ``skyline``
    # painted ground, then the painted surface of each deck, with a margin
    surfaces: tuple[Canvas, ...]
    textures: Textures  # grain of all materials, with the same margin as the ground
    sun: View  # the sun's view of a wider window

    @classmethod
    def of(cls, city: City, window: Window, grid: Grid) -> Self:
        """Paint the surfaces of a tile and compute its shadows."""
        wide = window.grown(_MARGIN)
        surfaces = [Canvas(wide, grid).draw(city.surfaces[0])]
        for number, scene in enumerate(city.surfaces[1:], 1):
            lean = round(number * LEVEL_M * _MAX_SLOPE / min(grid.x_m, grid.y_m))
            surfaces.append(Canvas(wide.grown(lean), grid, Material.CONCRETE).draw(scene))
        textures = Textures.of(wide, city.texture)
        textures.weather(surfaces[0], city.texture)
        around = window.grown(round(_SUN_MARGIN_M / min(grid.x_m, grid.y_m)))
        sun = render_view(city.skyline, around, grid, city.sun)
        facets = Facets.of(city.skyline, city.sun)
        return cls(window, grid, city.skyline, facets, tuple(surfaces), textures, sun)


@dataclass(frozen=True)
class RenderedImage:
    """Image of a tile."""

    counts: NDArray[np.uint16]  # uint16 (h, w, bands), at least 1
    # int32 (h, w), index of the building whose roof is visible, -1 elsewhere
    roof: NDArray[np.int32]


def render_image(
    site: Site, collect: ViewAngle, sensor: Sensor, bands: tuple[int, ...], rng: Rng
) -> RenderedImage:
    """Render the image of a tile from a view angle.

    A point is displaced by its height times the tangent of the off-nadir angle, as on a flat Earth.
    ``sensor`` is that of the collect in its ``bands``, indices among the eight of the materials.
    """
    view = render_view(site.skyline, site.surfaces[0].window, site.grid, collect.shift)
    radiance = _radiance(site, view, bands)
    blurred = _sharpened(radiance, collect, site.grid)
    inner = (slice(_MARGIN, -_MARGIN), slice(_MARGIN, -_MARGIN))
    surface = view.surface[inner]
    roof = np.where(site.facets.wall[surface], np.int32(-1), site.facets.building[surface])
    return RenderedImage(to_counts(np.ascontiguousarray(blurred[inner]), sensor, rng), roof)


def through_atmosphere(
    sensor: Sensor, collect: ViewAngle, bands: tuple[int, ...], exposure: float
) -> Sensor:
    """Return a nadir sensor's ``bands`` with the gain and haze of an oblique view's longer path.

    ``exposure`` is the brightness factor of this collect, about 1.
    """
    path = 1 / np.cos(np.radians(collect.angle)) - 1
    chosen = list(bands)
    return replace(
        sensor,
        gain=(sensor.gain[chosen] * (exposure * np.exp(-0.12 * path))).astype(np.float32),
        haze=(sensor.haze[chosen] * (exposure * (1 + 1.3 * path))).astype(np.float32),
    )


def _radiance(site: Site, view: View, bands: tuple[int, ...]) -> Float32:
    """Return the radiance of every pixel, float32 (h, w, b), relative to full light on white."""
    facets, ground = site.facets, site.surfaces[0]
    standing = view.surface != GROUND
    material = np.where(standing, facets.material[view.surface], ground.material)
    tone = np.where(standing, facets.tone[view.surface] * view.tone, ground.tone)
    white, yellow = (np.where(standing, 0, of) for of in (ground.white, ground.yellow))
    _draw_windows(site, view, material, tone)
    shade = _shade(site, view)
    painted_shade = np.where(standing, 0, ground.shade)
    _draw_decks(site, view, (material, tone, white, yellow, painted_shade))
    fine, middle = (
        _displaced_texture(of, site, view) for of in (site.textures.fine, site.textures.middle)
    )
    textures = Textures(fine, middle, site.textures.slow)
    radiance = reflected(material, tone, white, yellow, textures, bands)
    incidence, sky = facets.incidence[view.surface], facets.sky[view.surface]
    radiance *= light(np.maximum(shade, painted_shade), incidence, sky)[..., bands]
    return radiance


def _draw_decks(site: Site, view: View, layers: Sequence[NDArray[Any]]) -> None:
    """Copy the painted surfaces of decks to where the view shows them."""
    deck = site.facets.deck[view.surface]
    for number, canvas in enumerate(site.surfaces[1:], 1):
        at = np.nonzero(deck == number)
        if not len(at[0]):
            continue
        lift, corner = view.height[at], canvas.window
        columns = at[1] + view.window.column + 0.5 - lift * (view.shift[0] / site.grid.x_m)
        rows = at[0] + view.window.row + 0.5 - lift * (view.shift[1] / site.grid.y_m)
        column = np.clip(np.floor(columns).astype(np.intp) - corner.column, 0, corner.width - 1)
        row = np.clip(np.floor(rows).astype(np.intp) - corner.row, 0, corner.height - 1)
        painted = (canvas.material, canvas.tone, canvas.white, canvas.yellow, canvas.shade)
        for layer, source in zip(layers, painted, strict=True):
            layer[at] = np.asarray(source)[row, column]


def _visible_points(site: Site, view: View) -> tuple[Float32, Float32]:
    """Return city x and y of the visible points, metres, float32 (h, w) each."""
    window, grid = view.window, site.grid
    x = (np.arange(window.width, dtype=np.float32) + np.float32(0.5 + window.column)) * grid.x_m
    y = (np.arange(window.height, dtype=np.float32) + np.float32(0.5 + window.row)) * grid.y_m
    return (
        np.asarray(x[None, :] - view.height * view.shift[0], dtype=np.float32),
        np.asarray(y[:, None] - view.height * view.shift[1], dtype=np.float32),
    )


def _displaced_texture(texture: Float32, site: Site, view: View) -> Float32:
    """Move a ground texture with the displaced surfaces; it repeats beyond its borders."""
    moved = np.flatnonzero(view.height)
    rows, columns = np.unravel_index(moved, view.height.shape)
    height = view.height.ravel()[moved]
    rows = rows - np.rint(height * (view.shift[1] / site.grid.y_m)).astype(np.intp)
    columns = columns - np.rint(height * (view.shift[0] / site.grid.x_m)).astype(np.intp)
    carried = texture.copy()
    carried.ravel()[moved] = texture[rows % texture.shape[0], columns % texture.shape[1]]
    return carried


def _draw_windows(site: Site, view: View, material: NDArray[np.uint8], tone: Float32) -> None:
    """Draw windows on the visible walls, storey by storey and bay by bay."""
    facets = site.facets
    glazed = facets.bay_m[view.surface] > 0
    index = view.surface[glazed]
    x, y = (place[glazed] for place in _visible_points(site, view))
    start, along = facets.side[index, 0], facets.side[index, 1]
    reach = (x - start[:, 0]) * along[:, 0] + (y - start[:, 1]) * along[:, 1]
    bay = reach / facets.bay_m[index] % 1
    level = view.height[glazed] / STOREY_M % 1
    share = facets.glazing[index]
    window = (np.abs(bay - 0.5) < share / 2) & (level > _SILL) & (level < _LINTEL)
    material[glazed] = np.where(window, np.uint8(Material.GLASS), material[glazed])
    tone[glazed] = np.where(window, np.float32(1.2), tone[glazed])


def _shade(site: Site, view: View) -> Float32:
    """Return the fraction of sunlight blocked at each visible point, float32 (h, w)."""
    sun, grid = site.sun, site.grid
    x, y = _visible_points(site, view)
    columns = np.floor((x + view.height * sun.shift[0]) / grid.x_m).astype(np.intp)
    rows = np.floor((y + view.height * sun.shift[1]) / grid.y_m).astype(np.intp)
    columns, rows = columns - sun.window.column, rows - sun.window.row
    # Points outside the sun's view count as lit.
    known = (rows >= 0) & (rows < sun.window.height) & (columns >= 0) & (columns < sun.window.width)
    place = (np.where(known, rows, 0), np.where(known, columns, 0))
    above = sun.height[place] - view.height
    faces = len(site.skyline.faces)
    leaves = sun.surface[place] >= faces
    # A crown is only roughly a ball, so it must not shade itself.
    bias = np.where(view.surface >= faces, np.float32(3), np.float32(_SHADE_BIAS_M))
    strength = np.where(leaves, np.float32(LEAF_SHADE), np.float32(1))
    return np.where(known & (above > bias), strength, np.float32(0))


def _sharpened(radiance: Float32, collect: ViewAngle, grid: Grid) -> Float32:
    """Blur to the view's resolution, then pan-sharpen the coarser colours (Brovey)."""
    spread = _SPREAD * collect.resolution_m
    slant = np.cos(np.radians(collect.angle))
    heading = np.radians(collect.azimuth)
    along = np.array((np.sin(heading), -np.cos(heading)))
    across = np.array((-along[1], along[0]))
    # An oblique view has longer pixels along its direction.
    covariance = spread**2 * (np.outer(along, along) / slant + np.outer(across, across) * slant)
    scale = np.array((grid.x_m, grid.y_m))
    covariance /= np.outer(scale, scale)
    reach = int(np.ceil(3 * np.sqrt(covariance.diagonal().max())))
    place = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2), axis=-1)
    power = np.einsum("...i,ij,...j", place, np.linalg.inv(covariance), place)
    kernel = np.exp(-0.5 * power).astype(np.float32)
    kernel /= kernel.sum()
    sharp = cv2.filter2D(radiance, -1, kernel, borderType=cv2.BORDER_REFLECT)
    coarse = spread * _COLOUR_PIXELS / 2
    sigmas = (float(coarse / grid.x_m), float(coarse / grid.y_m))
    colours = cv2.GaussianBlur(sharp, (0, 0), sigmas[0], sigmaY=sigmas[1])
    brightness, mean = sharp.mean(axis=2), colours.mean(axis=2)
    ratio = brightness / np.maximum(mean, 1e-4)
    # Each band keeps part of its own detail, as better pan-sharpening methods do.
    return np.asarray(0.5 * (sharp + colours * ratio[..., None]), dtype=np.float32)
