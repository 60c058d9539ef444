"""A headless Chromium, spoken to over pipes in its DevTools protocol: what a page looks like, and what it asks for."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import threading

NAMES = ("chromium", "chromium-browser", "google-chrome")
LIMIT = 120  # seconds, after which a browser that says nothing is ended


def found() -> str:
    """The browser's path; empty where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), "")


class Tab:
    """One tab. `requests` holds the address of everything that its pages ask for, `errors` what they complain about."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.number, self.session, self.events = process, 0, None, []
        self.requests, self.errors = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def read(self) -> dict:
        """The next message, an answer or an event. Raises EOFError where the browser has ended."""
        text = bytearray()
        while (byte := self.process.stdout.read(1)) not in (b"\0", b""):
            text += byte
        if not byte:
            raise EOFError(f"the browser ended: {self.process.poll()}")
        message = json.loads(text)
        method, about = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(about["exceptionDetails"])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        return message

    def send(self, method: str, **params) -> dict:
        """The answer to a command; events that come before it are kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.process.stdin.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode())
        self.process.stdin.write(b"\0")
        self.process.stdin.flush()
        while (answer := self.read()).get("id") != self.number:
            self.events.append(answer.get("method"))
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, path: pathlib.Path, width: int, scheme: str, media: str = "") -> None:
        """Loads a file in a window of this width, under a light or a dark color scheme; `media` "print": as printed."""
        self.requests, self.errors, self.events = [], [], []
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", media=media,
                  features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=path.absolute().as_uri())
        while "Page.loadEventFired" not in self.events:
            self.events.append(self.read().get("method"))

    def ask(self, expression: str):
        """The value of an expression of JavaScript, as JSON."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as the keyboard sends it; one letter also writes it."""
        code = {"Tab": 9, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}.get(key) or ord(
            key.upper())
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                      **({"text": key} if len(key) == 1 and kind == "keyDown" else {}))

    def screenshot(self, whole: bool = True) -> bytes:
        """A PNG of the page, of all its length or of what is seen first."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])


@contextlib.contextmanager
def tab(profile: pathlib.Path):
    """A tab of a new browser, which keeps its files in `profile` and ends afterwards."""
    command = [found(), "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu",
               "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--disable-dev-shm-usage", "--hide-scrollbars", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    # It reads commands from descriptor 3 and answers on 4: our pipes to its input and output.
    process = subprocess.Popen(["sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', *command],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    timer = threading.Timer(LIMIT, process.kill)
    timer.start()
    try:
        yield Tab(process)
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
