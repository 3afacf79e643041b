"""The report in the system's Chromium: no errors, no requests, no wider than a phone."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from undertow.report.html import write_report
from undertow.report.text import number
from undertow.results import Results

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip


# What sticks out to the right of the window, less the bar that scrolls downward.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def pages(
    realistic: Results,
    empty: Results,
    hostile: Results,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    every = {"realistic": realistic, "empty": empty, "hostile": hostile}
    folder = tmp_path_factory.mktemp("pages")
    return {
        name: write_report(results, folder / f"{name}.html")
        for name, results in every.items()
    }


@pytest.mark.parametrize("name", ["realistic", "empty", "hostile"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_is_no_wider_than_the_window(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width=width)
    assert browser.value("innerWidth") == width
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value(OVERFLOW) == 0


@pytest.mark.parametrize("name", ["realistic", "empty", "hostile"])
def test_the_browser_has_no_complaint_and_asks_for_nothing(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    page = pages[name]
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.value("document.scripts.length + document.images.length") == 0


def test_the_browser_does_tell_of_a_broken_policy(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    # What the test above listens for is really heard.
    text = pages["realistic"].read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    bad = "<script>alert(1)</script><img src='http://evil.example/x.png'></body>"
    broken.write_text(text.replace("</body>", bad), encoding="utf-8")
    browser.open(broken)
    found = " ".join(browser.complaints())
    assert "Content Security Policy" in found
    assert "javascriptDialogOpening" not in found
    reasons = [
        e["params"].get("blockedReason")
        for e in browser.events
        if e.get("method") == "Network.loadingFailed"
    ]
    assert reasons == ["csp"]


def test_figures_and_numbers_are_there(
    browser: Browser, pages: dict[str, Path], realistic: Results
) -> None:
    browser.open(pages["realistic"])
    sizes = browser.value(
        "[...document.querySelectorAll('svg[role=img]')].map(s => "
        "[s.getBoundingClientRect().width, s.getBoundingClientRect().height, "
        "s.getAttribute('aria-label').length])"
    )
    assert len(sizes) == 24
    assert all(width > 300 and height > 80 and label for width, height, label in sizes)
    shown = browser.value("document.querySelector('#transfer table').innerText")
    for item in realistic.transfers:
        assert number(item.transfer.mean, signed=True) in shown
        assert number(item.specific.low, signed=True) in shown


@pytest.mark.parametrize("width", [375, 1280])
def test_figure_text_is_large_enough_to_read(
    browser: Browser, pages: dict[str, Path], width: int
) -> None:
    browser.open(pages["realistic"], width=width)
    smallest = browser.value(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => "
        "parseFloat(getComputedStyle(t).fontSize) * "
        "Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b)))"
    )
    assert smallest > 9.5


LUMINANCE = """
(() => {
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(
      v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const on = e => light(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color']);
  const pick = 'h1, p, li, td, th, summary, a, .below, svg text, .m-yes, .m-no';
  const ratios = [...document.querySelectorAll(pick)].map(e => {
    const ink = on(e);
    return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  });
  return [paper, Math.min(...ratios)];
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_the_light_and_in_the_dark(
    browser: Browser, pages: dict[str, Path], scheme: str
) -> None:
    browser.open(pages["realistic"], scheme=scheme)
    paper, contrast = browser.value(LUMINANCE)
    assert (paper > 0.5) == (scheme == "light")
    assert contrast >= 4.5


def test_paper_is_white_even_in_the_dark(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["realistic"], scheme="dark", media="print", width=700)
    paper, contrast = browser.value(LUMINANCE)
    assert paper == 1.0
    assert contrast >= 4.5
    assert browser.value(OVERFLOW) == 0


def test_a_page_that_is_too_wide_is_noticed(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    # What the width test measures would really grow.
    text = pages["empty"].read_text(encoding="utf-8")
    wide = tmp_path / "wide.html"
    table = "<table><td class='n'>" + "w" * 200 + "</td></table>"
    wide.write_text(text.replace("</body>", table + "</body>"), encoding="utf-8")
    browser.open(wide, width=1280)
    assert browser.value(OVERFLOW) > 100
