"""The page as text: complete, escaped, closed to the network, the same every time."""

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from undertow.errors import RunError
from undertow.report.html import render_report, write_report
from undertow.results import Results

TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer",
    "section", "nav", "h1", "h2", "h3", "h4", "p", "ul", "li", "a", "div", "span",
    "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption",
    "details", "summary", "pre", "code", "svg", "g", "defs", "path", "use", "text",
    "clippath", "rect",
}  # fmt: skip
VOID = {"meta", "use"}


class Page(HTMLParser):
    """Every tag and attribute of a page, and its text; refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


@pytest.fixture(scope="module")
def page(realistic: Results) -> str:
    return render_report(realistic)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_sections_come_in_order(page: str) -> None:
    assert re.findall(r'<section id="(\w+)"', page) == [
        "answer", "transfer", "readouts", "shift", "shape", "traits", "confusion", "noise",
        "channel", "gradients", "sweeps", "emergence", "training", "rows", "limits", "repeat",
    ]  # fmt: skip
    links = re.findall(r'href="#(\w+)"', page)
    assert links[:15] == re.findall(r'<section id="(\w+)"', page)[1:]


def test_title_question_and_headline_come_first(page: str, realistic: Results) -> None:
    text = squeezed(Page(page).text)
    places = [
        text.index(squeezed(part))
        for part in (
            realistic.title,
            realistic.question,
            "Transfer was shown in 3 of 4 conditions.",
            "No transfer was shown for dolphin by steer, no noise: its 95 % interval",
            *re.split(r"(?<=\.) (?=\w+ by)", realistic.headline),
            "outcome",
        )
    ]
    assert places == sorted(places)


def test_every_number_of_the_answer_stands_in_its_table(
    page: str, realistic: Results
) -> None:
    table = page[page.index('<section id="transfer">') :]
    rows = re.findall(r"<tr>.*?</tr>", table[: table.index("</table>")], re.S)[1:]
    for row, item in zip(rows, realistic.transfers, strict=True):
        text = squeezed(unescape(re.sub("<[^>]+>", " ", row)))
        assert item.shift_cosine is not None
        assert item.control_cosine is not None
        assert item.from_base is not None
        for found in (
            item.transfer, item.from_base, item.specific, item.shift_cosine,
            item.control_cosine,
        ):  # fmt: skip
            numbers = (found.mean, found.low, found.high)
            mean, low, high = (f"{v:+.2f}".replace("-", "−") for v in numbers)
            assert f"{mean} [{low}, {high}]" in text
        assert f"{item.transfer.n} seed and question" in text
        assert f"{item.trait} {item.teacher}, noise {item.noise:g}" in text
    outcomes = re.findall(r"travelled|no transfer shown", "".join(rows))
    assert outcomes == ["travelled", "no transfer shown", "travelled", "travelled"]


def test_the_run_can_be_repeated_from_the_page(page: str, realistic: Results) -> None:
    text = squeezed(Page(page).text)
    assert "undertow run recipe.yaml --out DIR" in text
    for value in realistic.provenance.values():
        if value is not None:
            assert str(value) in text
    for limit in realistic.limits:
        assert limit in text


def test_the_policy_allows_the_one_style_and_nothing_else(page: str) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [
        attributes["content"]
        for tag, attributes in Page(page).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert page.index("Content-Security-Policy") < page.index("<style>")


@pytest.mark.parametrize("name", ["realistic", "empty", "hostile"])
def test_the_page_holds_no_address_script_or_handler(
    name: str, request: pytest.FixtureRequest
) -> None:
    page = Page(render_report(request.getfixturevalue(name)))
    assert {tag for tag, _ in page.tags} <= TAGS
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")]
        assert "style" not in attributes
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("clip-path") or "url(#").startswith("url(#")
    style = re.findall(r"<style>(.*?)</style>", page.rawdata, re.S)
    assert "url(" not in "".join(style)
    assert "@import" not in "".join(style)


def test_hostile_text_is_shown_and_does_nothing(
    hostile: Results, evil: Sequence[str]
) -> None:
    raw = render_report(hostile)
    assert "<img" not in raw
    assert "alert(2)>" not in raw
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]", raw
    )
    text = squeezed(Page(raw).text)
    assert "</script><img src=x onerror=alert(1)>" in text
    assert r"\u202eevil\u2066 \u001b[31mred\u001b[0m \u0000\u0007" in text
    assert squeezed(evil[4]) in text
    assert "49" not in re.findall(r"\{\{ (.*?) \}\}", text)
    assert "{{ 7*7 }}" in text


def test_a_page_of_nothing_says_so_and_leaves_the_rest_out(empty: Results) -> None:
    raw = render_report(empty)
    assert re.findall(r'<section id="(\w+)"', raw) == [
        "answer", "transfer", "readouts", "confusion", "noise", "sweeps", "rows",
        "repeat",
    ]  # fmt: skip
    text = squeezed(Page(raw).text)
    assert "Nothing could be computed for owl by prompt." in text
    assert "— means: could not be computed" in text
    assert "<figure" not in raw
    assert not re.search(r"\b(?:None|nan|null|Undefined)\b", text)


def test_a_page_without_any_condition_can_be_written() -> None:
    bare = Results(
        title="t", question="q", model="m", headline="Nothing ran.", conditions=[],
        transfers=[],
    )  # fmt: skip
    raw = render_report(bare)
    assert re.findall(r'<section id="(\w+)"', raw) == ["answer", "repeat"]
    assert "Nothing ran." in raw


def test_many_panels_are_folded_away(realistic: Results) -> None:
    first = realistic.sweeps[0]
    sweeps = [first.model_copy(update={"seed": n}) for n in range(20)]
    many = realistic.model_copy(update={"sweeps": sweeps, "conditions": []})
    raw = render_report(many)
    assert "8 more panels" in raw
    assert raw.count("owl, seed 19") >= 2


def test_the_same_results_give_the_same_bytes(
    page: str, realistic: Results, tmp_path: Path
) -> None:
    data, again = tmp_path / "results.json", tmp_path / "report.html"
    data.write_text(realistic.model_dump_json(), encoding="utf-8")
    # Another process, with other hashes and from the stored file.
    code = (
        "import sys, pathlib\n"
        "from undertow.report.html import write_report\n"
        "from undertow.results import Results\n"
        "data = pathlib.Path(sys.argv[1]).read_text(encoding='utf-8')\n"
        "write_report(Results.model_validate_json(data), pathlib.Path(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data), str(again)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == page.encode()


def test_a_report_lies_where_it_was_asked_for(empty: Results, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    assert write_report(empty, path) == path
    assert path.read_text(encoding="utf-8") == render_report(empty)
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_a_place_that_cannot_be_written_is_named(
    empty: Results, tmp_path: Path
) -> None:
    folder = tmp_path / "report.html"
    folder.mkdir()
    with pytest.raises(RunError, match=r"report\.html: is not a regular file"):
        write_report(empty, folder)


def test_characters_that_xml_has_no_place_for_are_spelled_out(empty: Results) -> None:
    # Figures pass through an XML parser, which refuses them even escaped.
    trait = "\ufffeowl\uffff"
    condition = empty.conditions[0].model_copy(
        update={
            "trait": trait,
            "teacher": trait,
            "all_traits": {trait: 0.5, "cat": 0.1},
        }
    )
    text = render_report(empty.model_copy(update={"conditions": [condition]}))
    assert "\\ufffeowl\\uffff" in text
