"""Which rasters are found and read, and which are refused, each with its own message."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from full_disks import full_disk
from http_servers import Server, http_server
from repository import SHARED
from satmap.data import allowed_rasters, remote, s3
from satmap.data.layers import find_layers
from satmap.data.mosaic import make_mosaics
from satmap.data.sources import find_sources, opened, read_source
from satmap.errors import SatmapError
from satmap.io.geojson_reader import CRS_NAME, project
from satmap.rasters.scene import Box
from synthetic_images import write_image

UTM = "EPSG:32633"
PLACE = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(1, 255, (3, 64, 80)).astype(np.uint8)


def write(path: Path, pixels: NDArray[Any] = PIXELS, driver: str = "GTiff", **profile: Any) -> Path:
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    if profile.pop("placed", True):
        profile = {"crs": UTM, "transform": PLACE} | profile
    with rasterio.open(path, "w", driver=driver, **shape, **profile) as target:
        target.write(pixels)
    return path


def refusal(*names: str | Path, **options: Any) -> str:
    with pytest.raises(SatmapError) as caught:
        find_sources(names, **options)
    return str(caught.value)


# --- formats --------------------------------------------------------------------------------------


def test_files_of_any_name_and_format_are_found(tmp_path: Path) -> None:
    write(tmp_path / "my town 2023.tif")
    write(tmp_path / 'Ünïcode, "quoted" #1.TIFF', driver="COG")
    write(tmp_path / "deep/er/a.webp", driver="WEBP", LOSSLESS=True)
    write(tmp_path / "b.jp2", driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE=True)
    write(tmp_path / "c.png", driver="PNG")
    write(tmp_path / "d.jpg", driver="JPEG")
    # Hidden files are satmap's own temporary ones.
    write(tmp_path / ".roads.gpkg.maps/e.tif")
    (tmp_path / "notes.txt").write_text("no raster")
    found = find_sources([tmp_path])
    assert not found.faults
    names = [Path(source.name).name for source in found.sources]
    assert sorted(names) == sorted(
        ["my town 2023.tif", 'Ünïcode, "quoted" #1.TIFF', "a.webp", "b.jp2", "c.png", "d.jpg"]
    )
    for source in found.sources:
        assert (source.width, source.height, source.dtype) == (80, 64, "uint8")
        assert source.bands == (1, 2, 3)
        # PNG, JPEG and WebP keep theirs in a file beside them.
        assert source.crs and source.transform.almost_equals(PLACE)
        with opened(source) as file:
            same = np.array_equal(file.read(), PIXELS)
        assert same or source.driver == "JPEG"


@pytest.mark.parametrize(("driver", "suffix", "world"), [("JPEG", ".jpg", ".jgw"),
                                                         ("PNG", ".png", ".pgw")])  # fmt: skip
def test_world_files_need_a_reference_system(
    tmp_path: Path, driver: str, suffix: str, world: str
) -> None:
    path = write(tmp_path / f"a{suffix}", driver=driver, placed=False)
    path.with_suffix(world).write_text("0.5\n0\n0\n-0.5\n500000.25\n4999999.75\n")
    (source,) = find_sources([path]).sources
    assert not source.crs and source.transform == PLACE
    (source,) = find_sources([path], crs=UTM).sources
    assert "UTM zone 33N" in source.crs and source.transform == PLACE
    # It is not for rasters that have their own, nor for those without any place.
    other = write(tmp_path / "b.tif", crs="EPSG:32634")
    alone = write(tmp_path / "c.tif", placed=False)
    first, second = find_sources([other, alone], crs=UTM).sources
    assert "zone 34N" in first.crs and not second.crs
    assert refusal(path, crs="EPSG:0").startswith("EPSG:0 is not a reference system")


def test_wrong_suffixes_are_read_by_their_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", driver="PNG", placed=False)
    jpg = path.rename(tmp_path / "a.jpg")
    (source,) = find_sources([jpg]).sources
    assert source.driver == "PNG" and not source.is_lossy


def test_flat_and_nested_map_tiles_have_a_place(tmp_path: Path) -> None:
    tile = RANDOM.integers(1, 255, (3, 256, 256)).astype(np.uint8)
    plain: dict[str, Any] = {"driver": "PNG", "placed": False}
    for zoom, x, y in ((18, 140000, 85000), (18, 140001, 85000), (17, 70000, 42500)):
        write(tmp_path / f"nested/{zoom}/{x}/{y}.png", tile, **plain)
        write(tmp_path / f"flat/OAM-{x}-{y}-{zoom}.png", tile, **plain)
    nested = find_sources([tmp_path / "nested"]).sources
    flat = find_sources([tmp_path / "flat"]).sources
    place = {(source.zoom, source.transform, source.crs) for source in nested}
    assert len(place) == 3 and place == {(s.zoom, s.transform, s.crs) for s in flat}
    level = find_sources([tmp_path / "nested"], zoom=18).sources
    assert [source.zoom for source in level] == [18, 18]
    # The same if the user names a folder inside.
    for folder in ("nested/18", "nested/18/140000"):
        inside = find_sources([tmp_path / folder]).sources
        assert {source.transform for source in inside} <= {source.transform for source in level}
    assert "at zoom 16" in refusal(tmp_path / "flat", zoom=16)
    (single,) = find_sources([tmp_path / "flat/OAM-70000-42500-17.png"]).sources
    assert single.zoom == 17
    # Impossible numbers and other sizes are names like any other.
    write(tmp_path / "odd/1-9-2.png", tile, **plain)
    write(tmp_path / "odd/1-1-3.png", PIXELS, **plain)
    assert all(source.zoom is None for source in find_sources([tmp_path / "odd"]).sources)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data")
def test_real_map_tiles_lie_where_their_labels_are() -> None:
    folder = SHARED / "data/buildings_openaerialmap/place1"
    (source,) = find_sources([folder / "tiles/OAM-1277169-1083853-21.jpg"]).sources
    label = json.loads((folder / "labels/OAM-1277169-1083853-21.geojson").read_text())
    rings = [feature["geometry"]["coordinates"][0] for feature in label["features"]]
    assert rings
    xy = project(np.concatenate(rings)[:, :2], "EPSG:4326", source.crs)
    left, bottom, right, top = rasterio.transform.array_bounds(
        source.height, source.width, source.transform
    )
    assert (xy > (left - 1, bottom - 1)).all() and (xy < (right + 1, top + 1)).all()


def test_mbtiles_are_read_at_the_finest_or_the_chosen_zoom(tmp_path: Path) -> None:
    pixels = np.repeat(RANDOM.integers(1, 255, (3, 8, 8)), 64, axis=1).repeat(64, axis=2)
    place = Affine(1.194328566955879, 0, 1e6, 0, -1.194328566955879, 6e6)
    path = write(tmp_path / "a.mbtiles", pixels.astype(np.uint8), driver="MBTiles",
                 crs="EPSG:3857", transform=place, TILE_FORMAT="PNG")  # fmt: skip
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    (fine,) = find_sources([path]).sources
    (coarse,) = find_sources([path], zoom=16).sources
    assert fine.width >= 2 * coarse.width - 2 and coarse.zoom == 16
    with opened(coarse) as file:
        assert (file.width, file.height) == (coarse.width, coarse.height)
    assert "zoom" in refusal(path, zoom=3).lower()


# --- what cannot be read --------------------------------------------------------------------------


def test_pixels_that_satmap_does_not_read_are_refused(tmp_path: Path) -> None:
    for dtype in ("complex64", "float64", "int32", "uint32"):
        path = write(tmp_path / f"{dtype}.tif", PIXELS.astype(dtype))
        text = refusal(path)
        assert f"{path}: pixels of type {dtype}" in text and "gdal_translate" in text
    huge = tmp_path / "huge.tif"
    with rasterio.open(huge, "w", driver="GTiff", width=200000, height=200000, count=1,
                       dtype="uint8", SPARSE_OK=True, tiled=True, bigtiff=True):  # fmt: skip
        pass
    assert "200000 x 200000 pixels are more than satmap reads" in refusal(huge)


def test_unreadable_files_are_named_with_the_reason(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tif")
    broken = tmp_path / "broken.tif"
    broken.write_bytes(good.read_bytes()[:100])
    found = find_sources([tmp_path])
    assert [source.name for source in found.sources] == [str(good)]
    ((name, reason),) = found.faults.items()
    assert name == str(broken) and "Check that the file is complete" in reason
    assert str(broken) not in reason
    text = refusal(broken)
    assert text.startswith(f"{broken}: not a readable raster") and text.count(str(broken)) == 1
    (tmp_path / "text.tif").write_text("<VRTDataset/>")
    assert "not a readable raster" in refusal(tmp_path / "text.tif")
    assert "does not exist" in refusal(tmp_path / "none.tif")
    (tmp_path / "empty").mkdir()
    assert "none of" in refusal(tmp_path / "empty")
    (tmp_path / "notes.pdf").write_text("")
    assert "satmap reads .j2k" in refusal(tmp_path / "notes.pdf")
    flat = write(tmp_path / "flat.tif", transform=Affine(1, 0, 0, 0, 0, 0))
    assert "onto a line" in refusal(flat)


# --- virtual rasters ------------------------------------------------------------------------------

SOURCE = '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename></SimpleSource>'


def vrt(content: str = SOURCE, band: str = "", root: str = "") -> str:
    return (
        f'<VRTDataset rasterXSize="80" rasterYSize="64" {root}>'
        f"<SRS>{UTM}</SRS><GeoTransform>500000,.5,0,5000000,0,-.5</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1" {band}>{content}</VRTRasterBand></VRTDataset>'
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``a.tif``, beside a secret; the current directory is elsewhere."""
    folder = tmp_path / "folder"
    write(folder / "a.tif", PIXELS[:1])
    write(folder / "sub/b.tif", PIXELS[:1])
    write(tmp_path / "secret.tif", PIXELS[:1])
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere/a.tif", PIXELS[:1])
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_virtual_rasters_of_their_own_folder_are_read(folder: Path) -> None:
    path = folder / "all.vrt"
    for content in (SOURCE, SOURCE.replace("a.tif", "sub/b.tif"),
                    SOURCE.replace('"1">', f'"0">{folder}/')):  # fmt: skip
        path.write_text(vrt(content))
        with opened(read_source(str(path))) as file:
            assert np.array_equal(file.read(1), PIXELS[0])
    link = folder.parent / "link.vrt"
    link.symlink_to(path)
    with opened(read_source(str(link))) as file:
        assert np.array_equal(file.read(1), PIXELS[0])


def test_virtual_rasters_that_gdal_writes_are_read(folder: Path) -> None:
    path = folder / "mask.tif"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", count=1, height=64, width=80, dtype="uint8",
                      crs=UTM, transform=PLACE) as file,
    ):  # fmt: skip
        file.write(PIXELS[:1])
        file.write_mask(PIXELS[1] > 99)
        file.update_tags(1, note="band")
        file.write_colormap(1, {1: (10, 20, 30, 255)})
    points = [GroundControlPoint(0, 0, 1, 2), GroundControlPoint(9, 9, 3, 4)]
    gcps = write(folder / "gcps.tif", PIXELS[:1], placed=False, crs=UTM, gcps=points)
    for origin in (path, gcps):
        copied = origin.with_suffix(".vrt")
        rasterio.shutil.copy(origin, copied, driver="VRT")
        with opened(read_source(str(copied))) as file:
            assert np.array_equal(file.read(1), PIXELS[0])
    scaled = "<ScaleOffset>1</ScaleOffset><ScaleRatio>2</ScaleRatio><NODATA>7</NODATA>"
    complex_source = SOURCE.replace("Simple", "Complex").replace("</Complex", f"{scaled}</Complex")
    (folder / "all.vrt").write_text(vrt(f"<NoDataValue>7</NoDataValue>{complex_source}"))
    assert read_source(str(folder / "all.vrt")).has_mask


# What GDAL would read, and a word of the message.
HARMFUL = {
    "outside": (SOURCE.replace("a.tif", "../secret.tif"), "under its own folder"),
    "absolute": (SOURCE.replace('"1">a', '"0">/etc/a'), "under its own folder"),
    "current": (SOURCE.replace('"1"', '"0"'), "under its own folder"),
    "url": (SOURCE.replace("a.tif", "/vsicurl/http://127.0.0.1:9/a.tif"), "under its own folder"),
    "subdataset": (SOURCE.replace("a.tif", "GTIFF_DIR:1:a.tif"), "under its own folder"),
    "spaces": (SOURCE.replace("a.tif", " /etc/a.tif"), "under its own folder"),
    "text": (SOURCE.replace("a.tif", "a.txt"), "under its own folder"),
    "virtual": (SOURCE.replace("a.tif", "b.vrt"), "under its own folder"),
    "inline": (SOURCE.replace("a.tif", "&lt;VRTDataset/&gt;.tif"), "under its own folder"),
    "missing": (SOURCE.replace("a.tif", "c.tif"), "c.tif: not a readable raster"),
    "disguised": (SOURCE.replace("a.tif", "d.tif"), "d.tif: not a readable raster"),
    "case": ("<SimpleSource><sourcefilename>/etc/a.tif</sourcefilename></SimpleSource>", "/etc"),
    "attribute": ('<SimpleSource SourceFilename="/etc/a.tif"/>', '<SimpleSource SourceFilename="'),
    "open options": (SOURCE.replace("</Simple", "<OpenOptions/></Simple"), "OpenOptions"),
    "comment": (SOURCE.replace("a.tif", "<!-- -->a.tif"), "<!"),
    "data": (SOURCE.replace("a.tif", "<![CDATA[a.tif]]>"), "<!"),
    "function": ("<PixelFunctionType>mul</PixelFunctionType>" + SOURCE, "PixelFunction"),
    "element": ("<subClass>VRTDerivedRasterBand</subClass>", "<subClass>"),
    "geolocation": ("<X_DATASET>/etc/a.tif</X_DATASET>", "<X_DATASET>"),
    "srs": ("<srs>http://127.0.0.1:9/srs</srs>", "<srs>http://127.0.0.1:9/srs"),
    "tail": ("<SRS><MDI/>http://127.0.0.1:9/srs</SRS>", "<SRS>"),
    "points": ('<GCPList Projection="http://127.0.0.1:9/srs"/>', "http://127.0.0.1:9/srs"),
    "overviews": ('<Metadata domain="Overviews"><MDI key="OVERVIEW_FILE">/etc/a.tif</MDI>'
                  "</Metadata>", "Overviews"),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMFUL)
def test_virtual_rasters_may_not_reach_out(
    folder: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, expected = HARMFUL[case]
    (folder / "a.txt").write_text("text")
    (folder / "d.tif").write_text(vrt())
    path = folder / "all.vrt"
    path.write_text(vrt(content))

    def refuse(path: str, *_: Any, **options: Any) -> None:
        assert options["driver"] != "VRT", "GDAL must not see the virtual raster"
        original(path, *_, **options)

    original = rasterio.open
    monkeypatch.setattr("satmap.data.sources.rasterio.open", refuse)
    text = refusal(path)
    assert expected in text and str(path) in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (vrt(band='subClass="VRTDerivedRasterBand"'), "VRTDerivedRasterBand"),
        (vrt(band='subclass="VRTRawRasterBand"'), "VRTRawRasterBand"),
        (vrt(root='subClass="VRTWarpedDataset"'), '<VRTDataset subClass="VRTWarpedDataset">'),
        (vrt(root='SRS="http://127.0.0.1:9/srs"'), "<VRTDataset SRS="),
        (vrt(root='xmlns:SRS="http://127.0.0.1:9/srs"'), "xmlns"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + vrt(), "<!DOCTYPE"),
        ('<?xml version="1.0"?><?php?>' + vrt(), "<?php"),
        ("<VRTDataset", "not a virtual raster"),
        ("\0\0", "not a virtual raster"),
    ],
)
def test_virtual_rasters_may_not_run_code(folder: Path, text: str, expected: str) -> None:
    path = folder / "all.vrt"
    path.write_text(text)
    assert expected in refusal(path)


def test_metadata_may_not_name_overviews_elsewhere(folder: Path, server: Server) -> None:
    with rasterio.open(folder / "a.tif", "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"{server.url}/a.tif")
    (folder / "all.vrt").write_text(vrt())
    (folder / "sub/b.tif.aux.xml").write_text(
        '<PAMDataset><Metadata domain="overviews"><MDI key="Overview_File">'
        f"{server.url}/a.tif</MDI></Metadata></PAMDataset>"
    )
    for name in ("a.tif", "all.vrt", "sub/b.tif"):
        assert "overview_file names another file" in refusal(folder / name).lower()
    assert not server.requests


@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".OVR", ".msk.ovr"])
def test_overviews_and_masks_beside_a_file_may_not_be_virtual(
    folder: Path, server: Server, suffix: str
) -> None:
    raster = folder / "a.tif"
    if suffix == ".msk.ovr":
        write_image(folder / "a.tif.msk", bands=1)
    beside = folder / f"a.tif{suffix}"
    beside.write_text(vrt(SOURCE.replace('"1">', f'"0">/vsicurl/{server.url}/')))
    (folder / "all.vrt").write_text(vrt())
    for path in (raster, folder / "all.vrt"):
        assert f"{beside} beside it is not a GeoTIFF" in refusal(path)
    beside.unlink()
    assert read_source(str(raster)).width
    # GDAL follows the link and looks for overviews beside its target.
    (folder / "links").mkdir()
    link = folder / "links/all.vrt"
    link.symlink_to(folder / "all.vrt")
    assert read_source(str(link)).width
    beside = folder / f"all.vrt{suffix[:4]}"
    beside.write_text(vrt())
    assert f"{beside} beside it is not a GeoTIFF" in refusal(link)
    assert not server.requests


def test_overviews_and_masks_that_gdal_writes_are_read(folder: Path) -> None:
    with rasterio.open(folder / "a.tif") as file:
        shape = file.height, file.width
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(folder / "a.tif", "r+") as file:
        file.build_overviews([2], rasterio.enums.Resampling.average)
    assert (folder / "a.tif.ovr").exists()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(folder / "a.tif", "r+") as file:
        file.write_mask(np.eye(*shape, dtype=bool))
    assert (folder / "a.tif.msk").exists()
    source = read_source(str(folder / "a.tif"))
    assert source.has_mask
    with opened(source) as file:
        assert file.overviews(1) == [2]
        assert (file.dataset_mask() > 0).sum() == min(shape)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("EPSG:3857", True),
        ("+proj=merc +a=6378137 +b=6378137 +nadgrids=@null +units=m +no_defs", True),
        ("+proj=longlat +ellps=bessel +nadgrids=/etc/passwd", False),
        ("+proj=longlat +ellps=bessel +nadgrids=@null,/etc/passwd", False),
        ("+init=/tmp/epsg:1", False),
        ("+proj=longlat +init=/tmp/epsg:1", False),
        ("+proj=pipeline +step +proj=vgridshift +grids=/etc/passwd", False),
        ('BOUNDCRS[ABRIDGEDTRANSFORMATION[PARAMETERFILE["a","/etc/passwd"]]]', False),
    ],
)
def test_reference_systems_may_not_name_files(text: str, allowed: bool) -> None:
    assert bool(CRS_NAME.fullmatch(text)) == allowed


def test_reference_systems_of_rasters_may_not_name_files(folder: Path) -> None:
    wkt = rasterio.crs.CRS.from_string("+proj=longlat +ellps=bessel +nadgrids=secret").to_wkt()
    path = write_image(folder / "c.tif", crs="EPSG:4326")
    path.with_suffix(".tif.aux.xml").write_text(
        f"<PAMDataset><SRS>{wkt.replace(chr(34), '&quot;')}</SRS></PAMDataset>"
    )
    assert "its reference system names a file" in refusal(path)


def test_long_virtual_rasters_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed_rasters, "_LONGEST_VRT", 100)
    (folder / "all.vrt").write_text(vrt())
    assert "is larger than 100 bytes" in refusal(folder / "all.vrt")


# --- servers --------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.3)
    remote.remote_file.cache_clear()
    with http_server() as running:
        yield running


@pytest.fixture(scope="module")
def cog(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pixels = RANDOM.integers(1, 255, (3, 900, 1000)).astype(np.uint8)
    path = write(tmp_path_factory.mktemp("cog") / "a.tif", pixels, driver="COG", BLOCKSIZE=128)
    return path.read_bytes()


def test_a_file_on_a_server_is_read_in_parts(server: Server, cog: bytes, tmp_path: Path) -> None:
    server.files["/my%20town.tif?key=1"] = cog
    (tmp_path / "a.tif").write_bytes(cog)
    (found,) = find_sources([f"{server.url}/my town.tif?key=1"]).sources
    assert found.is_remote
    with opened(found) as file, rasterio.open(tmp_path / "a.tif") as local:
        window = rasterio.windows.Window(0, 0, 128, 128)
        assert np.array_equal(file.read(window=window), local.read(window=window))
        sent = len(server.requests)
        assert sent < 8
        assert np.array_equal(file.read(), local.read())
    # Parts that are known are not asked for again, nor any file beside it.
    with opened(found) as file:
        file.read()
    assert {path for _, path, _ in server.requests} == {"/my%20town.tif?key=1"}
    assert len(server.requests) < sent + len(cog) / remote._BLOCK + 2


def test_servers_that_fail_are_named(server: Server, cog: bytes) -> None:
    address = f"{server.url}/a.tif"
    assert refusal(address).startswith(f"{address}: cannot be read (the server answers 404")
    server.files["/a.tif"] = cog[:300]
    assert f"{address}: cannot be read (" in refusal(address)
    server.files["/text.tif"] = b"<VRTDataset/>" * 100
    assert "cannot be read" in refusal(f"{server.url}/text.tif")
    server.files["/b.tif"] = cog
    server.has_ranges = False
    assert "no range requests" in refusal(f"{server.url}/b.tif")
    server.silent.add("/slow.tif")
    assert "does not answer: timed out" in refusal(f"{server.url}/slow.tif")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/a.tif"
        assert "refused" in refusal(nobody)
    assert "satmap reads https://" in refusal("ftp://example.org/a.tif")
    assert "satmap reads https://" in refusal("file:///etc/a.tif")


def test_redirects_are_refused_and_their_target_is_never_contacted(
    server: Server, cog: bytes
) -> None:
    with http_server() as other:
        other.files["/a.tif"] = cog
        server.redirects["/a.tif"] = f"{other.url}/a.tif"
        text = refusal(f"{server.url}/a.tif")
        assert f"the server redirects to {other.url}/a.tif" in text
        # A server that redirects later.
        server.files["/b.tif"] = cog
        (found,) = find_sources([f"{server.url}/b.tif"]).sources
        server.redirects["/b.tif"] = f"{other.url}/a.tif"
        with pytest.raises(SatmapError, match="redirects to"), opened(found) as file:
            file.read()
        assert not other.requests


def test_a_file_that_changes_on_the_server_is_not_mixed(server: Server, cog: bytes) -> None:
    server.files["/a.tif"] = cog
    (found,) = find_sources([f"{server.url}/a.tif"]).sources
    server.files["/a.tif"] = cog + b"more"
    with pytest.raises(SatmapError, match="has changed on the server"), opened(found) as file:
        file.read()


def test_a_truncated_file_on_a_server_is_unreadable_where_it_ends(
    server: Server, cog: bytes
) -> None:
    server.files["/a.tif"] = cog[: len(cog) // 2]
    (found,) = find_sources([f"{server.url}/a.tif"]).sources
    with pytest.raises(SatmapError, match="cannot be read"), opened(found) as file:
        file.read()


def test_a_mask_that_a_server_does_not_send_is_an_error(server: Server, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.resize(PIXELS, (3, 400, 400)))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.arange(400 * 400).reshape(400, 400) % 2 > 0)
    server.files["/a.tif"] = path.read_bytes()
    source = read_source(f"{server.url}/a.tif")
    remote.remote_file.cache_clear()
    with pytest.raises(SatmapError, match="answers 404"), opened(source) as file:
        server.files.clear()
        # The mask lies at the end of the file; GDAL takes all pixels for valid.
        assert file.dataset_mask().all()


def test_all_files_on_servers_share_the_memory(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_BLOCK", 100)
    monkeypatch.setattr(remote, "_KEPT", 500)
    monkeypatch.setattr(remote, "_CACHE", remote._Cache())
    content = bytes(range(250)) * 2
    server.files |= {"/a": content, "/b": content}
    one, other = (remote.remote_file(f"{server.url}/{name}") for name in "ab")
    for file in (one, other, one):
        assert file.read(0, 450) == content[:450]
        assert len(remote._CACHE._blocks) == 5
    sent = len(server.requests)
    assert one.read(120, 480) == content[120:480] and len(server.requests) == sent


def test_s3_is_read_through_the_endpoint_of_the_environment(
    cog: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server")
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    running = moto.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="towns")
        client.put_object(Bucket="towns", Key="a/b.tif", Body=cog)
        monkeypatch.setenv("AWS_S3_ENDPOINT", f"{host}:{port}")
        monkeypatch.setenv("AWS_HTTPS", "NO")
        monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
        (found,) = find_sources(["s3://towns/a/b.tif"]).sources
        assert found.is_remote
        with opened(found) as file:
            assert file.read().shape == (3, 900, 1000)
        assert "s3://towns/none.tif: cannot be read" in refusal("s3://towns/none.tif")
        assert "404" in refusal("s3://towns/none.tif")
        assert "is not s3://BUCKET/KEY" in refusal("s3://towns")
        assert "is not s3://BUCKET/KEY" in refusal(f"s3://localhost:{port}?/a/b.tif")
    finally:
        running.stop()


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("no_settings")
def test_s3_contacts_only_the_bucket(
    server: Server, cog: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = server.url.removeprefix("http://")
    monkeypatch.setenv("AWS_S3_ENDPOINT", host)
    monkeypatch.setenv("AWS_HTTPS", "NO")
    # What asks the machine for credentials asks this server.
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{server.url}/metadata/")
    monkeypatch.setenv("CPL_AWS_EC2_API_ROOT_URL", f"{server.url}/metadata")
    server.files["/towns/a.tif"] = cog
    server.redirects["/towns/moved.tif"] = f"{server.url}/towns/a.tif"
    with opened(read_source("s3://towns/a.tif")) as file:
        assert file.read().shape == (3, 900, 1000)
    requested = len(server.requests)
    assert "redirects to" in refusal("s3://towns/moved.tif")
    assert {path for _, path, _ in server.requests[:requested]} == {"/towns/a.tif"}
    assert {path for _, path, _ in server.requests[requested:]} == {"/towns/moved.tif"}


@pytest.mark.usefixtures("no_settings")
def test_s3_requests_are_signed_as_amazon_signs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    address = s3.https_address("s3://towns/a b/ü+1.tif")
    assert address == "https://towns.s3.us-east-1.amazonaws.com/a%20b/%C3%BC%2B1.tif"
    assert s3.signed_headers(address) == {}
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[me]\naws_access_key_id = id\naws_secret_access_key = se%cret\naws_session_token = t\n"
    )
    (tmp_path / ".aws/config").write_text("[profile me]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_PROFILE", "me")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    address = s3.https_address("s3://to.wns/a b/ü+1.tif")
    assert address == "https://s3.eu-west-1.amazonaws.com/to.wns/a%20b/%C3%BC%2B1.tif"
    headers = s3.signed_headers(address)
    signature = headers.pop("Authorization").rpartition("Signature=")[2]
    request = AWSRequest("GET", address, headers=headers)
    request.context["timestamp"] = headers["x-amz-date"]
    signer = auth.S3SigV4Auth(Credentials("id", "se%cret", "t"), "s3", "eu-west-1")
    text = signer.string_to_sign(request, signer.canonical_request(request))
    assert signature == signer.signature(text, request)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert s3.signed_headers(address) == {"x-amz-request-payer": "requester"}


# --- bands ----------------------------------------------------------------------------------------


def test_bands_are_chosen_by_their_colours(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RANDOM.integers(1, 9, (5, 8, 8)).astype(np.uint16))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = (ColorInterp.undefined, ColorInterp.blue, ColorInterp.green,
                            ColorInterp.red, ColorInterp.alpha)  # fmt: skip
    source = read_source(str(path))
    assert source.bands == (1, 2, 3, 4) and source.colours == (4, 3, 2) and source.has_mask
    plain = read_source(str(write_image(tmp_path / "b.tif", bands=8, dtype="uint16")))
    assert plain.bands == tuple(range(1, 9)) and not plain.has_mask


# --- large files without random access ------------------------------------------------------------


def large_image(path: Path, bands: int) -> Path:
    pixels = np.tile(RANDOM.integers(0, 255, (bands, 300, 500)).astype(np.uint8), (1, 7, 5))
    options = {"LOSSLESS": True} if path.suffix == ".webp" else {}
    driver = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG"}[path.suffix]
    write(path, pixels, driver, placed=False, **options)
    if path.suffix == ".jpg":
        # A mask in a file of its own.
        write(Path(f"{path}.msk"), pixels[:1] & 255, placed=False)
    return path


@pytest.mark.parametrize(
    ("name", "bands"), [("a.png", 4), ("a.png", 2), ("a.webp", 3), ("a.jpg", 3)]
)
def test_large_files_are_decoded_once(name: str, bands: int, tmp_path: Path) -> None:
    path = large_image(tmp_path / name, bands)
    source = read_source(str(path))
    window = rasterio.windows.Window(1900, 1500, 400, 500)
    with rasterio.open(path) as file:
        pixels, mask = file.read(window=window), file.dataset_mask(window=window)
        colours, flags = file.colorinterp, file.mask_flag_enums
    with opened(source) as file:
        assert file.driver == "GTiff"
        assert np.array_equal(file.read(window=window), pixels)
        assert np.array_equal(file.dataset_mask(window=window), mask)
        assert (file.colorinterp, file.mask_flag_enums) == (colours, flags)
    # Another image under the same name is not mistaken for this one.
    write(path, np.full((bands, 2100, 2500), 7, np.uint8), source.driver, placed=False)
    with opened(source) as file:
        assert (file.read(1, window=window) // 2 == 3).all()


def test_damaged_large_files_and_full_disks_are_read_as_before(tmp_path: Path) -> None:
    whole = large_image(tmp_path / "whole.png", 3)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:-2_000_000])
    first = rasterio.windows.Window(0, 0, 500, 300)
    with rasterio.open(whole) as file:
        pixels = file.read(window=first)
    with opened(read_source(str(cut))) as file:
        assert np.array_equal(file.read(window=first), pixels)
    with (
        pytest.raises(SatmapError, match=r"cut\.png"),
        opened(read_source(str(cut))) as file,
    ):
        file.read(window=rasterio.windows.Window(0, 1800, 500, 300))
    with full_disk(1_000_000), opened(read_source(str(whole))) as file:
        assert file.driver == "PNG"
        assert np.array_equal(file.read(window=first), pixels)


# --- lists and collections ------------------------------------------------------------------------


def stac_item(name: str, **assets: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "stac_version": "1.0.0", "id": name, "assets": assets}


def test_lists_name_rasters_beside_them_or_anywhere(tmp_path: Path) -> None:
    far = write(tmp_path / "elsewhere/far.tif")
    near = write(tmp_path / "lists/near.tif")
    listed = tmp_path / "lists/rasters.txt"
    listed.write_text(f"# two rasters\n\nnear.tif\n{far}\nnear.tif\nmissing.tif\n")
    found = find_sources([listed])
    assert [Path(source.name) for source in found.sources] == [near, far]
    assert [*found.faults] == [str(listed.parent / "missing.tif")]
    listed.write_text("# nothing yet\n")
    assert "names no rasters" in refusal(listed)


def test_lists_of_map_tiles_have_places(tmp_path: Path) -> None:
    tile = RANDOM.integers(1, 255, (3, 256, 256)).astype(np.uint8)
    write(tmp_path / "tiles/18/140000/85000.png", tile, driver="PNG", placed=False)
    (tmp_path / "tiles/list.txt").write_text("18/140000/85000.png\n")
    (expected,) = find_sources([tmp_path / "tiles"]).sources
    (source,) = find_sources([tmp_path / "tiles/list.txt"]).sources
    assert source == expected and source.zoom == 18


def test_collections_name_the_imagery_of_each_item(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "red", "blue"):
        write(tmp_path / f"data/{name}.tif")
    items = [
        stac_item("one", image={"href": "./data/a.tif", "roles": ["data"]},
                  thumbnail={"href": "data/a.png", "roles": ["thumbnail"]},
                  metadata={"href": "data/a.xml"}),
        stac_item("two", visual={"href": "data/b.tif"}, red={"href": "data/red.tif"}),
        stac_item("three", red={"href": "data/red.tif"}, blue={"href": "data/blue.tif"}),
        stac_item("four", data={"href": str(tmp_path / "data/c.tif")}),
    ]  # fmt: skip
    path = tmp_path / "items.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    found = find_sources([path])
    assert [Path(source.name).name for source in found.sources] == ["a.tif", "b.tif", "c.tif"]
    ((name, reason),) = found.faults.items()
    assert name.endswith("items.geojson#three") and "several rasters (red, blue)" in reason
    path.write_text(json.dumps(items[0]))
    (source,) = find_sources([path]).sources
    assert Path(source.name).name == "a.tif"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"type": "FeatureCollection"}',
        '{"type": "Feature", "id": "x", "assets": [1]}',
        '{"type": "Feature", "id": "x", "assets": {"a": {}}}',
    ],
)
def test_other_json_is_no_collection(tmp_path: Path, content: str) -> None:
    path = tmp_path / "roads.geojson"
    path.write_text(content)
    assert "roads.geojson is not a STAC item collection" in refusal(path)


def test_addresses_in_lists_are_not_contacted(server: Server, tmp_path: Path, cog: bytes) -> None:
    server.files["/a.tif"] = cog
    near = write(tmp_path / "near.tif")
    (tmp_path / "list.txt").write_text(f"{server.url}/a.tif\nnear.tif\n")
    found = find_sources([tmp_path / "list.txt"])
    assert [source.name for source in found.sources] == [str(near)]
    assert "only contacts addresses of the command line" in found.faults[f"{server.url}/a.tif"]
    assert not server.requests


def test_mosaics_may_have_more_than_four_billion_pixels(folder: Path) -> None:
    side = 200_000
    (folder / "a.tif").unlink(missing_ok=True)
    write(folder / "a.tif")
    text = (
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>{UTM}</SRS>'
        "<GeoTransform>500000, 0.5, 0, 5000000, 0, -0.5</GeoTransform>"
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>0</NoDataValue>'
            '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
            f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="80" ySize="64"/>'
            f'<DstRect xOff="{side - 80}" yOff="{side - 64}" xSize="80" ySize="64"/>'
            "</SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    (folder / "country.vrt").write_text(text)
    layers, faults = find_layers(find_sources([folder / "country.vrt"]).sources, 3)
    assert not faults
    # The last corner is read from the right place.
    bands, valid = layers[0].read(Box(side - 100, side - 70, 100, 70), {})
    assert np.array_equal(bands[:, 6:, 20:], PIXELS) and valid.sum() == 80 * 64
    (mosaic,) = make_mosaics(layers, None)
    assert (mosaic.width, mosaic.height) == (side, side)
    assert len(mosaic.blocks(2048)) == 98**2
    text = text.replace(f'"{side}"', '"2000000"')
    (folder / "country.vrt").write_text(text)
    assert "more than satmap reads, 1,099,511,627,776" in refusal(folder / "country.vrt")
