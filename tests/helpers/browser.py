"""Drives a headless Chromium through chromedriver, with the standard library only."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Why browser tests cannot run here; empty if they can.
MISSING = ", ".join(
    names[0]
    for names in (("chromium", "google-chrome"), ("chromedriver",))
    if not any(map(shutil.which, names))
)

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--enable-unsafe-swiftshader", "--use-gl=angle",
    "--use-angle=swiftshader", "--hide-scrollbars",
    # No name but this machine's can be resolved.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
)  # fmt: skip

_WAIT_S = 120.0


class Browser:
    """A browser with one window."""

    def __init__(self, address: str, profile: str, size: tuple[int, int]) -> None:
        self._address = address
        binary = shutil.which("chromium") or shutil.which("google-chrome")
        options = {
            "binary": binary,
            "args": [
                *_ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}",
            ],
        }  # fmt: skip
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        answer = self._post("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"
        timeouts = {"script": int(_WAIT_S * 1000), "pageLoad": int(_WAIT_S * 1000)}
        self._post(f"{self._session}/timeouts", timeouts)

    def _post(self, path: str, content: Any) -> Any:
        request = urllib.request.Request(
            self._address + path,
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_WAIT_S + 30) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from error

    def open(self, url: str) -> None:
        """Open a page and wait until its map is drawn."""
        # A new fragment alone does not load a page again.
        self._post(f"{self._session}/url", {"url": "about:blank"})
        self._post(f"{self._session}/url", {"url": url})
        self.run(
            "for (let k = 0; k < 300 && typeof satmap === 'undefined'; k++)"
            " await new Promise((resolve) => { setTimeout(resolve, 100); });"
            " await satmap.ready;"
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of an async function with ``args``, and return its value."""
        body = (
            "const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);"
            f"(async () => {{ {script} }})().then((value) => done([true, value]),"
            " (error) => done([false, String(error && error.stack || error)]));"
        )
        fine, value = self._post(
            f"{self._session}/execute/async", {"script": body, "args": arguments}
        )
        assert fine, value
        return value

    def idle(self) -> None:
        """Wait until the map is drawn."""
        self.run(
            "await new Promise((resolve) => { satmap.map.once('idle', resolve);"
            " satmap.map.triggerRepaint(); })"
        )

    def screenshot(self) -> NDArray[np.uint8]:
        """Return the window, uint8 (h, w, 3)."""
        with urllib.request.urlopen(
            f"{self._address}{self._session}/screenshot", timeout=_WAIT_S
        ) as answer:
            content = base64.b64decode(json.loads(answer.read())["value"])
        return np.asarray(Image.open(BytesIO(content)).convert("RGB"))

    def click(self, x: int, y: int) -> None:
        """Click at a place of the window."""
        moves = [
            {"type": "pointerMove", "duration": 0, "x": x, "y": y},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": moves}
        self._post(f"{self._session}/actions", {"actions": [mouse]})

    def hover(self, x: int, y: int) -> None:
        """Move the mouse to a place of the window."""
        moves = [{"type": "pointerMove", "duration": 0, "x": x, "y": y}]
        self._post(
            f"{self._session}/actions",
            {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]},
        )

    def drag(self, start: tuple[int, int], end: tuple[int, int], kind: str = "mouse") -> None:
        """Drag with the mouse, or with a finger (``touch``)."""
        moves = [
            {"type": "pointerMove", "duration": 0, "x": start[0], "y": start[1]},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "duration": 100, "x": end[0], "y": end[1]},
            {"type": "pointerUp", "button": 0},
        ]
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}}
        self._post(f"{self._session}/actions", {"actions": [pointer | {"actions": moves}]})

    def press(self, key: str) -> None:
        """Press a key, such as ``r``, or a code such as ``\\ue007`` for Enter."""
        moves = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._post(
            f"{self._session}/actions",
            {"actions": [{"type": "key", "id": "keys", "actions": moves}]},
        )

    def messages(self) -> list[str]:
        """Return warnings and errors of the console since the last call."""
        entries = self._post(f"{self._session}/se/log", {"type": "browser"})
        # Software rendering is slow to read back, which Chromium reports.
        return [
            entry["message"]
            for entry in entries
            if entry["level"] in ("SEVERE", "WARNING") and "GPU stall" not in entry["message"]
        ]

    def requests(self) -> list[str]:
        """Return the addresses that pages requested since the last call."""
        entries = self._post(f"{self._session}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
            and not event["params"]["request"]["url"].startswith("chrome")
        ]

    def close(self) -> None:
        """End the browser."""
        request = urllib.request.Request(self._address + self._session, method="DELETE")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=30).close()


@contextlib.contextmanager
def browser(size: tuple[int, int] = (1280, 800)) -> Iterator[Browser]:
    """Start a browser with an empty profile, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(port, driver)
            shown = Browser(f"http://127.0.0.1:{port}", str(Path(profile) / "profile"), size)
            try:
                yield shown
            finally:
                shown.close()
        finally:
            driver.terminate()
            driver.wait(30)


def _wait_for(port: int, driver: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and driver.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError("chromedriver does not start")
