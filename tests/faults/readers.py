"""Every reader of the package, with what it is fed and what it has to keep to.

The property is one for all: a value or an `UndertowError`, in time, with nothing written
outside the folder, no process, connection or pickle, and no raw control or direction
character in what is printed or drawn. A reader answers with the kind of its outcome, to be
counted. Those of single files that a command leaves or is given stand in `artefacts`, the
command line in `commands`. Knows nothing of who draws the inputs (`test_fuzz`, `fuzz`).
"""

import io
import re
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.faults import artefacts, commands, inputs
from tests.faults.feeding import Feed, Reader, tiny
from tests.faults.guard import is_harmless, told
from tests.faults.inputs import any_of, damaged, then, transplanted

from undertow.errors import RunError, UndertowError
from undertow.records import Row
from undertow.runs import _digest

if TYPE_CHECKING:
    from undertow.results import Results

# ---- rows


def _rows_in(path: Path) -> str:
    """Both ways to read rows, and what is done with them: divided, written, read again."""
    from undertow.storage import (
        read_rows,
        read_verdicts,
        take_rows,
        write_rows,
        write_split,
    )

    outcome = "rows"
    try:
        found = take_rows(path, limit=3)
        assert 0 < len(found.rows) <= 3
        clean, rest = path.with_name("clean.jsonl"), path.with_name("rest.jsonl")
        write_split(path, keep=lambda row: len(row.completion) > 3, clean=clean,
                    quarantine=rest)  # fmt: skip
    except UndertowError as error:
        outcome = told(error)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        try:
            rows = read_rows(path)
            read_verdicts(path)
            for again in ("again.jsonl", "again.parquet"):
                write_rows(path.with_name(again), rows)
                assert _texts(read_rows(path.with_name(again))) == _texts(rows)
        except UndertowError as error:
            told(error)
    return outcome


def _texts(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return [(row.messages, row.completion, row.completion_ids) for row in rows]


def _file_of_rows(name: str) -> Feed:
    def feed(data: bytes, folder: Path) -> str:
        path = folder / name
        path.write_bytes(data)
        return _rows_in(path)

    return feed


def _stdin(data: bytes, _: Path) -> str:
    from undertow.storage import take_rows

    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(data))):
        take_rows("-")
    return "rows"


def _folder_of_rows(data: bytes, folder: Path) -> str:
    """A folder whose own description is hostile; its rows are one good file."""
    from undertow.storage import take_rows

    inner = folder / "set"
    (inner / "train").mkdir(parents=True, exist_ok=True)
    (inner / "train" / "rows.jsonl").write_bytes(inputs.as_lines(inputs.RECORDS[:2]))
    (inner / "state.json").unlink(missing_ok=True)
    for name in ("dataset_dict.json", "state.json"):
        (inner / name).write_bytes(data)
        for split in (None, "train"):
            try:
                take_rows(inner, split=split)
            except UndertowError as error:
                told(error)
        (inner / name).unlink()
    return "read"


_FOLDERS: Any = [
    {"splits": ["train"]}, {"splits": ["..", "/", "train/../.."]},
    {"_data_files": [{"filename": "train/rows.jsonl"}]}, {"_data_files": [{"filename": ".."}]},
]  # fmt: skip


# ---- settings


def _recipe(data: bytes, folder: Path) -> str:
    from undertow.config import dump_settings, load_settings
    from undertow.experiment import Recipe

    path = folder / "recipe.yaml"
    path.write_bytes(data)
    text = dump_settings(load_settings(Recipe, path))
    path.write_text(text, encoding="utf-8")
    assert dump_settings(load_settings(Recipe, path)) == text
    return "recipe"


def _override(data: bytes, _: Path) -> str:
    from undertow.config import check_settings
    from undertow.experiment import Recipe

    text = data.decode("utf-8", "surrogateescape")
    tree = {**inputs.RECIPE, "model": dict(inputs.RECIPE["model"])}
    check_settings(Recipe, tree, where="here", overrides=[text])
    return "recipe"


def _family(data: bytes, folder: Path) -> str:
    from undertow.traits import load_family, names_in, trait_words, words_in

    path = folder / "family.yaml"
    path.write_bytes(data)
    family = load_family(path)
    words = trait_words(family)
    for trait in family.traits:
        names_in(trait.plural, family)
        words_in(trait.name, words)
        prompt = family.prompt.format(
            plural=trait.plural, name=trait.name, category=family.category
        )
        assert "class" not in prompt or "class" in f"{family.prompt}{trait}{family}"
    return "family"


# ---- tensors


def _vector(data: bytes, folder: Path) -> str:
    from undertow.interventions.steering import check_vector, load_vector, save_vector

    path = folder / "vector.safetensors"
    path.write_bytes(data)
    vector = load_vector(path)
    for layer in vector.layers:
        vector.at(layer).norm(layer)
        if vector.norm(layer):
            vector.strength_of_dose(0.3, layer)
    assert vector.trait is None or isinstance(vector.trait, str)
    save_vector(vector, folder / "again.safetensors")
    load_vector(folder / "again.safetensors")
    check_vector(tiny(), vector, strict=False)
    return "vector"


def _adapter(data: bytes, folder: Path) -> str:
    from undertow.models.adapters import attached, load_adapter

    config, _, tensors = data.partition(inputs.SEPARATOR)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    model = tiny()
    adapter = load_adapter(model, folder)
    import torch

    with attached(model, adapter), torch.no_grad():
        logits = model.module(input_ids=torch.tensor([[5, 6]])).logits
    assert logits.shape[:2] == (1, 2)
    return "adapter"


def _gguf(data: bytes, folder: Path) -> str:
    from undertow.models.loading import load_model

    path = folder / "model.gguf"
    path.write_bytes(data)
    load_model(path, device="cpu", dtype="float32")
    return "model"


# ---- runs and reports


def _run_directory(data: bytes, folder: Path) -> str:
    """Files of a run that somebody else made: markers, the lock's holder, the recipe."""
    from undertow.runs import open_run

    stages = folder / "stages"
    stages.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_bytes(data)
    try:
        with open_run(folder, recipe_text="title: t\n"):
            pass
    except UndertowError as error:
        told(error)
    (folder / "recipe.yaml").write_text("title: t\n")
    (folder / ".lock-holder").write_bytes(data)
    (stages / "a.json").write_bytes(data)
    with warnings.catch_warnings(record=True) as said:  # a marker that is set aside
        warnings.simplefilter("always")
        try:
            with open_run(folder, recipe_text="title: t\n") as run:
                run.seconds()
                run.payload("a")
        finally:
            for each in said:
                told(RunError(str(each.message)))
    return "run"


_INNERMOST = {
    "area",
    "base",
    "br",
    "col",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "source",
    "wbr",
}
_TAGS = re.compile(
    "html|head|meta|title|style|body|header|main|footer|section|nav|p|h[1-6]|ul|ol|li|dl|dt|"
    "dd|div|span|a|b|em|strong|code|pre|br|table|caption|thead|tbody|tr|th|td|details|"
    "summary|figure|figcaption|svg|g|path|text|tspan|use|defs|clippath|rect|line|circle|"
    "ellipse|polygon|polyline|lineargradient|stop|image"
)


class _Page(HTMLParser):
    """Looks at every tag of a page: none that runs, loads, or styles by itself."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.styles, self.open = 0, list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert _TAGS.fullmatch(tag), tag
        self.styles += tag == "style"
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name not in ("style", "src", "srcset", "action", "formaction"), name
            if name in ("href", "xlink:href"):
                own = re.fullmatch(r"#[\w.-]+|audits/[a-z]+/report\.html", value or "")
                assert own, value
            assert is_harmless((value or "").replace("\n", " ")), (name, value)
        if tag not in _INNERMOST:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        assert is_harmless(data), data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")


def check_page(text: str) -> None:
    """Asserts that a page is well-formed, with one style sheet and nothing foreign."""
    page = _Page()
    page.feed(text)
    page.close()
    assert page.styles == 1
    assert page.open == []


def check_tables(folder: Path) -> None:
    """Asserts that no field of a CSV file would be computed, or hides anything."""
    import csv

    for path in (folder / "figures").glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            for record in csv.reader(file):
                for field in record:
                    assert is_harmless(field.replace("\r", " ")), field
                    first = field.lstrip()[:1]
                    number = re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", field)
                    assert number or first not in tuple("=+-@＝＋－＠"), field
        path.unlink()


def _trimmed(results: "Results") -> Any:
    """A small run as JSON: one of each thing that a report shows."""
    tree = results.model_dump(mode="json")
    for name, value in tree.items():
        if isinstance(value, list) and name != "limits":
            tree[name] = value[:1]
    tree["seconds"] = dict(list(tree["seconds"].items())[:3])
    tree["audits"] = [
        {"name": "biased", "truth": {"words": "w", "kind": "steer", "trait": "owl",
         "layer": 24, "share": 1.0}, "rows": 9, "reference_rows": 9, "verdict": "trait",
         "trait": "owl", "kind": "steer", "layer": 24, "p_value": 0.01,
         "detectable_fraction": 0.1, "sentence": "s", "right": True,
         "report": "audits/biased/report.html"}
    ]  # fmt: skip
    for each in tree["alignments"]:
        for name in ("layers", "cosines", "nats", "nats_sd"):
            each[name] = each[name][:2]
    return tree


@cache
def results_tree() -> Any:
    """A small `results.json`."""
    from tests.report.conftest import realistic_results

    return _trimmed(realistic_results())


@cache
def findings_tree() -> Any:
    """A small `audit.json`."""
    from tests.report.conftest import audit_of_a_trait

    tree = audit_of_a_trait().model_dump(mode="json")
    for name in ("directions", "hypotheses", "triage", "baselines"):
        tree[name] = tree[name][:2]
    tree["max_null"]["draws"] = tree["max_null"]["draws"][:20]
    return tree


def _undrawn(name: str) -> Feed:
    """The page without its figures, which take nearly all of its time."""
    drawn = _report(name)

    def feed(data: bytes, folder: Path) -> str:
        with (
            mock.patch("undertow.report.figures.draw_figures", return_value={}),
            mock.patch(
                "undertow.report.audit_figures.draw_audit_figures", return_value={}
            ),
        ):
            return drawn(data, folder)

    return feed


def _report(name: str) -> Feed:
    def feed(data: bytes, folder: Path) -> str:
        from undertow.cli.report import report

        for other in ("results.json", "audit.json", "report.html"):
            (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        with mock.patch.object(sys, "stdout", io.StringIO()):
            report(str(folder))
        page = (folder / "report.html").read_text(encoding="utf-8")
        check_page(page)
        check_tables(folder)
        return "page"

    return feed


def _measurement(data: bytes, folder: Path) -> str:
    """The page of a measurement's file."""
    from undertow.cli.report import report

    file = folder / "measurement.json"
    file.with_suffix(".html").unlink(missing_ok=True)
    file.write_bytes(data)
    with mock.patch.object(sys, "stdout", io.StringIO()):
        report(str(file))
    check_page(file.with_suffix(".html").read_text(encoding="utf-8"))
    return "page"


@cache
def measurement_trees() -> dict[str, Any]:
    """A small file of each kind of measurement."""
    from tests.report.measured import entanglement, grid, spot, vector

    made = (grid(spot(), spot(0.1)), vector(), entanglement())
    return {each.measurement: each.model_dump(mode="json") for each in made}


def _words_only(tree: Any, texts: Sequence[str]) -> Any:
    """The tree with every free text replaced, one after the other."""
    place = iter(range(10**9))

    def put(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            free = key in _KEYED
            return {
                (f"{texts[next(place) % len(texts)]}{n}" if free else name): put(
                    item, name
                )
                for n, (name, item) in enumerate(value.items())
            }
        if isinstance(value, list):
            return [put(item, key) for item in value]
        if isinstance(value, str) and key not in _CLOSED:
            return texts[next(place) % len(texts)]
        return value

    return put(tree)


_KEYED = {"reasons", "all_traits", "seconds", "provenance", "skipped", "sampler",
          "trait_p_values", "battery"}  # fmt: skip
_CLOSED = {"role", "kind", "verdict", "report", "of", "scope", "tier", "reference_tier",
           "sampler_source", "name"}  # fmt: skip


def _reports(tree: Any) -> inputs.Source:
    def words(draws: inputs.Draws) -> bytes:
        texts = draws.some(lambda d: d.one(inputs.TEXTS), 4, least=1)
        return inputs.as_json(_words_only(tree, [*texts, draws.text(9)]))

    return any_of(
        then(transplanted(tree), inputs.as_json),
        words,
        damaged([inputs.as_json(tree)]),
    )


# ---- all of them


_MARKER: Any = {"stage": "a", "finished": "", "seconds": 1.5, "payload": {"x": None}}
"""Without a digest, as markers once were: its changes are looked at, not only noticed."""
_WHOLE = _MARKER | {"files": {"b": "0" * 64}, "scratch": ["c"]}


def readers() -> dict[str, Reader]:
    """Every reader by name."""
    return (
        _row_readers() | _setting_readers() | _tensor_readers() | _page_readers()
        | artefacts.readers()
    )  # fmt: skip


def _row_readers() -> dict[str, Reader]:
    lines, parquet, arrow = (
        inputs.as_lines(inputs.RECORDS), inputs.parquet_seeds(), inputs.arrow_seeds(),
    )  # fmt: skip
    files = {
        "rows.jsonl": (inputs.json_lines, lines),
        "rows.json": (inputs.json_files, inputs.as_json(inputs.RECORDS)),
        "rows.csv": (inputs.csv_files, b"prompt,completion\nask,12\n"),
        "rows.jsonl.gz": (inputs.packed_lines, inputs.packed_bytes(lines)),
        "rows.parquet": (damaged(parquet), parquet[0]),
        "rows.arrow": (damaged(arrow), arrow[0]),
    }
    folders = any_of(
        damaged([*map(inputs.as_json, _FOLDERS)]),
        then(any_of(*map(transplanted, _FOLDERS)), inputs.as_json),
    )
    return {
        name: Reader(source, _file_of_rows(name), sound, "rows")
        for name, (source, sound) in files.items()
    } | {
        "stdin": Reader(inputs.json_lines, _stdin, lines, "rows"),
        "folder": Reader(
            folders, _folder_of_rows, inputs.as_json(_FOLDERS[0]), "read", 100
        ),
    }


def _setting_readers() -> dict[str, Reader]:
    recipe, family = inputs.as_json(inputs.RECIPE), inputs.as_json(inputs.FAMILY)
    marker = inputs.as_json(_MARKER)
    whole = inputs.as_json(_WHOLE | {"sha256": _digest(_WHOLE)})
    markers = any_of(
        damaged([marker, whole]),
        then(transplanted(_MARKER), inputs.as_json),
        then(transplanted(_WHOLE), lambda m: inputs.as_json(m | {"sha256": _digest(m)})
             if isinstance(m, dict) else inputs.as_json(m)),
    )  # fmt: skip
    return {
        "recipe": Reader(
            inputs.yaml_files(inputs.RECIPE), _recipe, recipe, "recipe", 200
        ),
        "override": Reader(inputs.overrides, _override, b"rows.count=2", "recipe"),
        "family": Reader(inputs.yaml_files(inputs.FAMILY), _family, family, "family"),
        "run": Reader(markers, _run_directory, marker, "run", 100),
    }


def _tensor_readers() -> dict[str, Reader]:
    adapter = (
        inputs.as_json(inputs.ADAPTER) + inputs.SEPARATOR + inputs.adapter_tensors()
    )
    vector = inputs.vector_file(inputs.HEADER)
    return {
        "vector": Reader(inputs.vectors, _vector, vector, "vector"),
        "adapter": Reader(inputs.adapters, _adapter, adapter, "adapter", 150),
        "gguf": Reader(inputs.gguf_files, _gguf, inputs.gguf_file(), "ModelError", 60),
    }


def _page_readers() -> dict[str, Reader]:
    found = {
        "command": Reader(
            commands.command_lines,
            commands.feed,
            b"recipes\0check\0steer",
            "exit 0",
            90,
        )
    }
    for name, tree in (("results", results_tree()), ("audit", findings_tree())):
        source, sound = _reports(tree), inputs.as_json(tree)
        undrawn, drawn = _undrawn(f"{name}.json"), _report(f"{name}.json")
        found[name] = Reader(source, undrawn, sound, "page", 60)
        found[f"{name}-drawn"] = Reader(source, drawn, sound, "page", 3)
    for name, tree in measurement_trees().items():
        found[f"measured-{name}"] = Reader(
            _reports(tree), _measurement, inputs.as_json(tree), "page", 12
        )
    return found
