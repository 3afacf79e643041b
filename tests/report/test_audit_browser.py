"""An audit's page in the system's Chromium: no errors, no requests, fit for a phone."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undertow.findings import Findings
from undertow.report.audit_page import write_audit_report

if TYPE_CHECKING:
    from tests.conftest import Browser

pytestmark = pytest.mark.browser
EVERY = ("trait_found", "inconclusive", "hostile_findings")


@pytest.fixture(scope="module")
def pages(
    trait_found: Findings,
    inconclusive: Findings,
    hostile_findings: Findings,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("audits")
    every = zip(EVERY, (trait_found, inconclusive, hostile_findings), strict=True)
    return {
        name: write_audit_report(findings, folder / f"{name}.html")
        for name, findings in every
    }


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_and_the_browser_has_no_complaint(
    browser: "Browser", pages: dict[str, Path], name: str, width: int
) -> None:
    page = pages[name]
    browser.open(page, width=width)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("innerWidth") == width
    assert browser.overflow() == 0
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.value("document.scripts.length + document.images.length") == 0


def test_figures_and_numbers_are_there(
    browser: "Browser", pages: dict[str, Path], trait_found: Findings
) -> None:
    browser.open(pages["trait_found"], width=375)
    sizes = browser.value(
        "[...document.querySelectorAll('svg[role=img]')].map(s => "
        "[s.getBoundingClientRect().width, s.getBoundingClientRect().height, "
        "s.getAttribute('aria-label').length])"
    )
    assert len(sizes) == 10
    assert all(width > 300 and height > 80 and label for width, height, label in sizes)
    shown = browser.value("document.querySelector('#verdict').innerText")
    assert trait_found.sentence in shown
    assert all(number in shown for number in ("1.0×10⁻⁴", "+4.92", "[+4.11, +5.73]"))
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
    browser.open(pages["trait_found"], scheme=scheme)
    paper, contrast = browser.contrast()
    assert (paper > 0.5) == (scheme == "light")
    assert contrast >= 4.5


def test_paper_is_white_even_in_the_dark(
    browser: "Browser", pages: dict[str, Path]
) -> None:
    browser.open(pages["trait_found"], scheme="dark", media="print", width=700)
    paper, contrast = browser.contrast()
    assert paper == 1.0
    assert contrast >= 4.5
    assert browser.overflow() == 0
