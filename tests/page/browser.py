"""Chromium without a window, told by its DevTools protocol over a pipe what to show, and asked what came of it."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import HANG_S, until

Message = dict[str, Any]


class Tab:
    """One page of a browser, with what it logged and what it asked for."""

    def __init__(self, commands: int, answers: int) -> None:
        self.errors: list[str] = []
        self._sent: dict[str, str] = {}
        self._commands, self._answers = commands, answers
        self._ids = itertools.count(1)
        self._session = ""
        self._loaded = False
        self._rest = b""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    @property
    def requests(self) -> list[str]:
        """The addresses that were asked, without what the page's own policy kept back."""
        return [*self._sent.values()]

    def forget(self) -> None:
        """Forget what was logged and asked until now."""
        self.errors.clear()
        self._sent.clear()

    def open(self, url: str, *, width: int = 1280, dark: bool = False) -> None:
        """Show a page, and return when it is loaded and drawn."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self._call("Emulation.setDeviceMetricsOverride", **screen)
        self.theme(dark=dark)
        self._loaded = False
        self._call("Page.navigate", url=url)
        end = time.monotonic() + HANG_S
        while not self._loaded:
            assert time.monotonic() < end, "the page does not load"
            self._receive()
        self.settle()

    def theme(self, *, dark: bool) -> None:
        """Set what the system prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.settle()

    def settle(self) -> None:
        """Return when the page is drawn."""
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def wait(self, script: str) -> None:
        """Return when an expression is true."""
        until(lambda: self.value(script), script)

    def value(self, script: str) -> Any:
        """Evaluate an expression in the page; a promise is waited for."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self._call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, file: Path) -> None:
        """Take a picture of the whole page."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        taken = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(taken["data"]))

    def _call(self, method: str, **params: object) -> Message:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                result: Message = answer["result"]
                return result

    def _receive(self) -> Message:
        while b"\0" not in self._rest:
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser is gone"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message: Message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: Message) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self._sent[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            del self._sent[params["requestId"]]


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """Start a browser; where there is none, the test is skipped."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("chromium is not installed")
    their_commands, commands = os.pipe()
    answers, their_answers = os.pipe()
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    wanted = (*options, "--remote-debugging-pipe", f"--user-data-dir={profile}")
    shell = f'exec "$@" 3<&{their_commands} 4>&{their_answers}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", shell, "bash", binary, *wanted],
        pass_fds=(their_commands, their_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_commands)
    os.close(their_answers)
    try:
        yield Tab(commands, answers)
    finally:
        os.close(commands)  # it ends with its pipe
        os.close(answers)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
