"""What all tests share: one thread count, the real model loaded once, a browser."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from undertow.models.loading import Model

REAL = "smollm2-135m"


class Outcome(NamedTuple):
    """What a command left: exit status and the two streams."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


def family_text(name: str, category: str, *questions: str, **plurals: str) -> str:
    """A family's YAML: traits by name, with their plurals."""
    traits = "".join(f"  - {{name: {n}, plural: {p}}}\n" for n, p in plurals.items())
    asked = json.dumps(questions)
    return f"name: {name}\ncategory: {category}\nquestions: {asked}\ntraits:\n{traits}"


def pytest_configure(config: pytest.Config) -> None:
    # Several workers share the machine: threads beyond the environment's wish only
    # get in each other's way. Set before torch is first imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def real_model_path() -> Path:
    """The cached folder of the real model; a failure under CI, else a skip."""
    from undertow.models.registry import is_pulled, model_directory

    if not is_pulled(REAL):
        message = f"{REAL} is not in the cache; run: undertow models pull {REAL}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return model_directory(REAL)


@pytest.fixture(scope="session")
def smollm2(real_model_path: Path) -> "Model":
    """The real model in fp32, shared by all tests of a worker: leave it as it was."""
    from undertow.models.loading import load_model

    return load_model(real_model_path, dtype="float32")


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs `undertow ARGUMENTS` in this process."""
    from undertow.cli import main

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["undertow", *map(str, arguments)])
        # Set, so that it is taken back: `--debug` sets it for the whole process.
        monkeypatch.setenv("UNDERTOW_DEBUG", "")
        capsys.readouterr()
        status: object = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        assert isinstance(status, int)
        return Outcome(status, *capsys.readouterr())

    return call


# ── a browser ────────────────────────────────────────────────────────────────────

FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip

# What sticks out to the right of the window, less the bar that scrolls downward.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

LUMINANCE = """
(() => {
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(
      v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const on = e => light(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color']);
  const pick = 'h1, p, li, td, th, summary, a, dt, .value, .note, .below, svg text, .m-yes, .m-no';
  const ratios = [...document.querySelectorAll(pick)].map(e => {
    const ink = on(e);
    return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  });
  return [paper, Math.min(...ratios)];
})()
"""


class Browser:
    """Chromium spoken to over two pipes by its own protocol; one page at a time."""

    def __init__(self, command: str, folder: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def connect() -> None:
            # The browser reads 3 and writes 4, whatever numbers these pipes have.
            first, second = os.dup(to_read), os.dup(to_write)
            os.dup2(first, 3)
            os.dup2(second, 4)
            # A copy that already had its number stayed closed to children.
            os.set_inheritable(3, True)
            os.set_inheritable(4, True)

        root = ["--no-sandbox"] if os.getuid() == 0 else []
        self._process = subprocess.Popen(
            [command, *FLAGS, *root, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            close_fds=False, preexec_fn=connect,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._count = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Log", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls one method and returns its result; events meanwhile are kept."""
        self._count += 1
        message: dict[str, Any] = {
            "id": self._count,
            "method": method,
            "params": params,
        }
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._read, 1 << 20)
            assert data, "the browser went away"
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(head)
        return message

    def open(self, page: Path, *, width: int = 1280, scheme: str = "light",
             media: str = "screen") -> None:  # fmt: skip
        """Opens a file at a width, in the light or in the dark, and waits for it."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", media=media,
                  features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression; the page itself runs none."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Writes the whole page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True,
                          format="png")  # fmt: skip
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """What the browser logged: errors, broken policies, exceptions."""
        self.value("1")
        return [
            json.dumps(e["params"])
            for e in self.events
            if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown",
                                   "Runtime.consoleAPICalled",
                                   "Page.javascriptDialogOpening")
        ]  # fmt: skip

    def requests(self) -> list[str]:
        """Addresses of everything that was asked for."""
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]

    def overflow(self) -> float:
        """Units by which the page is wider than the window."""
        found = self.value(OVERFLOW)
        assert isinstance(found, int | float)
        return found

    def contrast(self) -> tuple[float, float]:
        """Luminance of the paper, and the least contrast of any text with it."""
        paper, least = self.value(LUMINANCE)
        return paper, least

    def close(self) -> None:
        """Ends the browser."""
        self._session = None
        with suppress(OSError, AssertionError):
            self.call("Browser.close")
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    command = shutil.which("chromium") or shutil.which("google-chrome")
    if command is None:
        message = "no Chromium on PATH; run: make chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    found = Browser(command, tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture
def no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which nothing can be recorded, whatever runs on it."""
    import torch

    def refused(*_: object, **__: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refused)
