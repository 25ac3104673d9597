"""A real browser for tests: Chromium's DevTools protocol over a pipe, so that no port and no package is needed.

https://chromedevtools.github.io/devtools-protocol/ ; messages are JSON, each ended by a NUL byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Space": 32}


def find_chromium() -> str | None:
    """Path of the browser: `LEANVIT_CHROMIUM`, else the first of the usual names."""
    return os.environ.get("LEANVIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One headless Chromium without a network; `open` gives its pages."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, their_write = os.pipe()
        their_read, to_write = os.pipe()
        self._read, self._write, self._buffer, self._count = to_read, to_write, b"", 0
        self._events: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,  # pipes of Python's are not inherited; 3 and 4 are, by the copies made here
            preexec_fn=lambda: _become_3_and_4(their_read, their_write),
        )
        os.close(their_read)
        os.close(their_write)

    def open(self, url: str, *, width: int, height: int = 900) -> Page:
        """A tab of this size, loaded, its own script done."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        for domain in ("Runtime", "Log", "Page", "Network"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        page.send("Page.navigate", {"url": url})
        page.wait_for("document.readyState === 'complete' && 'ready' in document.documentElement.dataset")
        return page

    def send(self, method: str, params: dict[str, Any] | None = None, session: str = "") -> dict[str, Any]:
        """Call a method and wait for its result. Raises RuntimeError with the browser's reason."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params or {}}
        os.write(self._write, json.dumps({**message, **({"sessionId": session} if session else {})}).encode() + b"\0")
        while True:
            answer = self._next(time.monotonic() + 60)
            if answer.get("id") != self._count:
                self._events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def events(self, session: str) -> list[dict[str, Any]]:
        """What a session was told so far, without being asked."""
        return [event for event in self._events if event.get("sessionId") == session]

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise RuntimeError("the browser does not answer")
            more = os.read(self._read, 1 << 20)
            if not more:
                raise RuntimeError("the browser is gone")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """One tab, driven by real mouse and key events."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def send(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.send(method, params, self._session)

    def resize(self, width: int, height: int = 900) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", screen)

    def prefer(self, scheme: str) -> None:
        """The system's theme: "light" or "dark"."""
        self.send("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression. Raises RuntimeError for an exception in it."""
        answer = self.send("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", script))
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 30) -> None:
        """Until an expression is true. Raises RuntimeError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not true within {seconds} s: {condition}")
            time.sleep(0.05)

    def click(self, selector: str, *, number: int = 0) -> None:
        """A click of the mouse in the middle of an element, scrolled into view first."""
        found = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self.run(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(f"{found}.getBoundingClientRect().toJSON()")
        spot = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", {"type": kind, **spot, **button})

    def press(self, key: str) -> None:
        """One key, into what has the focus."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", {"type": kind, **about})

    def picture(self, *, whole: bool = True) -> bytes:
        """PNG of the page, or of what the window shows."""
        return base64.b64decode(self.send("Page.captureScreenshot", {"captureBeyondViewport": whole})["data"])

    def paper(self) -> bytes:
        """PDF of the page as it prints."""
        options = {"preferCSSPageSize": True, "printBackground": True}
        return base64.b64decode(self.send("Page.printToPDF", options)["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and requests that would leave the page."""
        self.run("new Promise(requestAnimationFrame)")
        return [text for event in self._browser.events(self._session) if (text := _complaint(event))]


def _complaint(event: dict[str, Any]) -> str:
    params = event.get("params", {})
    match event.get("method"):
        case "Runtime.exceptionThrown":
            return str(params["exceptionDetails"].get("exception", {}).get("description", params["exceptionDetails"]))
        case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
            return str(params["args"])
        case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
            return str(params["entry"]["text"])
        case "Network.requestWillBeSent" if not params["request"]["url"].startswith(("file:", "data:", "about:")):
            return f"request of {params['request']['url']}"
    return ""


def _become_3_and_4(read: int, write: int) -> None:
    """In the child: what the browser reads is file 3, what it writes is file 4."""
    read, write = fcntl.fcntl(read, fcntl.F_DUPFD, 10), fcntl.fcntl(write, fcntl.F_DUPFD, 10)
    os.dup2(read, 3)
    os.dup2(write, 4)


@contextmanager
def browsing(program: str, profile: Path) -> Iterator[Browser]:
    """A browser that is closed in the end."""
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
