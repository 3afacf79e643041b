"""The report in the system's Chromium: no errors, no requests, no wider than a phone."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undertow.report.html import write_report
from undertow.report.text import number
from undertow.results import Results

if TYPE_CHECKING:
    from tests.conftest import Browser

pytestmark = pytest.mark.browser


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
    browser: "Browser", pages: dict[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width=width)
    assert browser.value("innerWidth") == width
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.overflow() == 0


@pytest.mark.parametrize("name", ["realistic", "empty", "hostile"])
def test_the_browser_has_no_complaint_and_asks_for_nothing(
    browser: "Browser", pages: dict[str, Path], name: str
) -> None:
    page = pages[name]
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.value("document.scripts.length + document.images.length") == 0


def test_the_browser_does_tell_of_a_broken_policy(
    browser: "Browser", pages: dict[str, Path], tmp_path: Path
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
    browser: "Browser", pages: dict[str, Path], realistic: Results
) -> None:
    browser.open(pages["realistic"])
    sizes = browser.value(
        "[...document.querySelectorAll('svg[role=img]')].map(s => "
        "[s.getBoundingClientRect().width, s.getBoundingClientRect().height, "
        "s.getAttribute('aria-label').length])"
    )
    assert len(sizes) == 42
    assert all(width > 300 and height > 80 and label for width, height, label in sizes)
    shown = browser.value("document.querySelector('#transfer table').innerText")
    for item in realistic.transfers:
        assert number(item.transfer.mean, signed=True) in shown
        assert number(item.specific.low, signed=True) in shown


@pytest.mark.parametrize("width", [375, 1280])
def test_figure_text_is_large_enough_to_read(
    browser: "Browser", pages: dict[str, Path], width: int
) -> None:
    browser.open(pages["realistic"], width=width)
    smallest = browser.value(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => "
        "parseFloat(getComputedStyle(t).fontSize) * "
        "Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b)))"
    )
    assert smallest > 9.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_the_light_and_in_the_dark(
    browser: "Browser", pages: dict[str, Path], scheme: str
) -> None:
    browser.open(pages["realistic"], scheme=scheme)
    paper, contrast = browser.contrast()
    assert (paper > 0.5) == (scheme == "light")
    assert contrast >= 4.5


def test_paper_is_white_even_in_the_dark(
    browser: "Browser", pages: dict[str, Path]
) -> None:
    browser.open(pages["realistic"], scheme="dark", media="print", width=700)
    paper, contrast = browser.contrast()
    assert paper == 1.0
    assert contrast >= 4.5
    assert browser.overflow() == 0


def test_a_page_that_is_too_wide_is_noticed(
    browser: "Browser", pages: dict[str, Path], tmp_path: Path
) -> None:
    # What the width test measures would really grow.
    text = pages["empty"].read_text(encoding="utf-8")
    wide = tmp_path / "wide.html"
    table = "<table><td class='n'>" + "w" * 200 + "</td></table>"
    wide.write_text(text.replace("</body>", table + "</body>"), encoding="utf-8")
    browser.open(wide, width=1280)
    assert browser.overflow() > 100
