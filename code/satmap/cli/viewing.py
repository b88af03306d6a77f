"""Commands that show maps in the browser."""

import argparse
import sys
from pathlib import Path

from satmap.cli.commands import Commands, report_warnings
from satmap.cli.options import add_least_confidence
from satmap.errors import SatmapError
from satmap.io.files import require_writable
from satmap.runtime.termination import Terminated

_HIGHEST_PORT = 65535
_PAGE_SUFFIXES = (".html", ".htm")


def add_view(commands: Commands) -> None:
    """Add ``view``."""
    view = commands.add("view", _view)
    view.value(
        "results RESULT",
        Path,
        "roads or buildings to show: vector files, or directories of GeoJSON; several are shown "
        "together",
        nargs="+",
    )
    view.value(
        "--images SOURCE",
        Path,
        "raster, or directory of rasters, to show below the result; repeatable",
        action="append",
        default=[],
    )
    view.value("--truth TRUTH", Path, "truth to compare with, as for score; for one RESULT")
    view.value("--html OUT.html", Path, "write one HTML file that opens offline; start no server")
    view.value("--port N", _port, "port of the local server (default: any free one)", default=0)
    view.flag("--no-browser", "only print the address, open no browser")
    add_least_confidence(view)


def _view(options: argparse.Namespace) -> int:
    """Show roads and buildings as an interactive map in the browser.

    RESULT is an export of `satmap map` or `predict`, or any other vector file of roads or
    buildings. The map finds fastest routes and the roads that can be reached in 5, 10 and 15
    minutes. A small server on this machine shows it until Ctrl-C; nothing is loaded from elsewhere.
    With --html the map is written as one file instead, with reduced imagery. With --truth the map
    also shows what is found, missed and false.

    Examples:
      satmap view roads.gpkg buildings.gpkg --images town.tif
      satmap view roads.gpkg --truth labels.geojson --html map.html
    """
    from satmap.cli.checks import require_existing

    truths = [options.truth] if options.truth else []
    require_existing(*options.results, *options.images, *truths)
    if options.truth and len(options.results) > 1:
        raise SatmapError("--truth compares one result with its truth; give one RESULT.")
    if options.html:
        if options.html.suffix.lower() not in _PAGE_SUFFIXES:
            raise SatmapError(f"{options.html}: the map is a page, so its name must end in .html.")
        require_writable(options.html)
    try:
        _show(options)
    except Terminated as ended:
        # Nothing is kept that the same command could resume from.
        raise Terminated(ended.status - 128, "stopped") from None
    return 0


def _show(options: argparse.Namespace) -> None:
    """Write the map as a file, or serve it until a signal ends the process."""
    from satmap.viewer.compare import compared
    from satmap.viewer.data import read_results
    from satmap.viewer.imagery import Imagery
    from satmap.viewer.page import make_page, write_page

    data = read_results(options.results, options.least_confidence)
    report_warnings([f"{path} holds no roads and no buildings" for path in data.empty])
    if options.truth:
        data = compared(data, options.truth, options.results[0], options.least_confidence)
    imagery = Imagery(options.images) if options.images else None
    if imagery is not None and not imagery.is_near(data.bounds):
        report_warnings(["the imagery is of another place than the roads or buildings"])
    if options.html:
        write_page(options.html, data, imagery)
        print(f"{options.html}: {options.html.stat().st_size / 1e6:.1f} MB")
        return
    from satmap.viewer.server import MapServer

    tiles = None
    if imagery is not None:
        imagery.prepare()
        tiles = {"maxzoom": imagery.deepest_zoom, "bounds": imagery.bounds}
    page = make_page(data, tiles=tiles).encode()
    with MapServer(page, imagery, options.port) as server:
        print(f"{server.url} (Ctrl-C ends it)", flush=True)
        if not options.no_browser:
            import webbrowser

            if not webbrowser.open(server.url):
                print("satmap: no browser could be opened; open the address.", file=sys.stderr)
        server.serve_forever(0.1)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= _HIGHEST_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to {_HIGHEST_PORT}")
    return int(text)
