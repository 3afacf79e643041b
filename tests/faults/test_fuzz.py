"""Hostile and random input to every reader: a value or an `UndertowError`, and no more.

The same inputs each time; `python -m tests.faults.fuzz` tries more. Bombs, which would take
the machine with them, are read by a process of bounded memory.
"""

import gzip
import json
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.cli.test_main import ALL
from tests.faults import artefacts, inputs
from tests.faults.commands import called, command_lines, commands
from tests.faults.feeding import fed
from tests.faults.guard import Forbidden, Hung, guarded
from tests.faults.inputs import Draws
from tests.faults.readers import check_page, readers

from undertow.seeding import generator

READERS = readers()


@pytest.fixture(params=sorted(READERS))
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A reader that has read its sound input, with all its imports done."""
    found: str = request.param
    reader = READERS[found]
    if found != "gguf":  # a whole model is more than a few hundred bytes
        assert reader.feed(reader.sound, tmp_path) == reader.gives
    else:
        with pytest.raises(Exception, match="weights are missing"):
            reader.feed(reader.sound, tmp_path)
    return found


def test_every_reader_keeps_to_a_value_or_an_error(name: str, tmp_path: Path) -> None:
    reader = READERS[name]

    # The generator's draws are Hypothesis's own, so a failing input is made smaller.
    @settings(
        max_examples=reader.examples, derandomize=True, database=None, deadline=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def feed(random: object) -> None:
        below: Callable[[int], int] = random.randrange  # type: ignore[attr-defined]
        fed(reader, reader.source(Draws(below)), tmp_path)

    feed()


# ---- bombs


def _laughs(level: str, last: str) -> bytes:
    """Eleven levels, each of ten aliases of the one before."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [
        f"a{i}: &a{i} " + level % ", ".join([f"*a{i - 1}"] * 10) for i in range(1, 12)
    ]
    return "\n".join([*lines, last]).encode()


def _vector_of(length: int, shape: list[int]) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * length]}
    return inputs.packed({"directions": entry}, b"\0" * 64)


def _many(text: str, count: int) -> bytes:
    return ("traits:\n- &t {nme: x}\n" + f"- *t\n{text}" * count).encode()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "aliases of aliases": ("recipe", lambda: _laughs("[%s]", "title: *a11")),
    "merges of merges": ("recipe", lambda: _laughs("{<<: [%s]}", "title: *a11")),
    "merges in a family": ("family", lambda: _laughs("{<<: [%s]}", "name: *a11")),
    "one fault many times": ("family", lambda: _many("", 5_000)),
    "a megabyte of brackets": ("recipe", lambda: b"[" * (1 << 20)),
    "a long text": ("recipe", lambda: b"title: " + b"x" * (8 << 20)),
    "sixties": ("recipe", lambda: b"seeds: [" + b"1:" * 100_000 + b"1]"),
    "a long number": ("recipe", lambda: b"seeds: [0x" + b"f" * 100_000 + b"]"),
    "a float of sixties": ("recipe", lambda: b"seeds: [" + b"1:" * 400 + b"1.5]"),
    "many questions": (
        "family", lambda: b"name: a\ncategory: b\nquestions: ["
        + b", ".join(b"q%d" % i for i in range(5_000)) + b"]\ntraits: []\n"),
    "brackets of JSON": ("rows.json", lambda: b"[" * (4 << 20)),
    "a wide row": ("rows.jsonl", lambda: b"[" + b"[]," * (1 << 17) + b"[]]\n"),
    "a wide header": (
        "rows.csv", lambda: b",".join(b"c%d" % i for i in range(200_000)) + b"\n1\n"),
    "a quote that never closes": ("rows.csv", lambda: b'a,b\n"' + b"x\n" * (1 << 20)),
    "packed zeros": ("rows.jsonl.gz", lambda: gzip.compress(b"\0" * (1 << 29), 1)),
    "packed arrays": ("measurements", artefacts.packed_arrays),
    "an array beyond its part": ("measurements", artefacts.array_beyond_its_part),
    "a packed wheel": ("wheel", artefacts.packed_wheel),
    "a header beyond the file": ("vector", lambda: struct.pack("<Q", 1 << 62) + b"{}"),
    "a tensor beyond the file": ("vector", lambda: _vector_of(1 << 40, [1 << 20, 1 << 20])),
    "a vector of brackets": ("vector", lambda: inputs.packed(
        {"__metadata__": {"undertow_vector": "[" * 100_000}}, b"")),
    "an array beyond the file": ("gguf", lambda: inputs.gguf_file(array=1 << 40)),
    "blocks without end": ("gguf", lambda: inputs.gguf_file(blocks=(1 << 31) - 1)),
    "tensors without end": ("gguf", lambda: inputs.gguf_file(tensors=1 << 40)),
    "a deep marker": ("run", lambda: b'{"stage": ' + b"[" * 100_000),
    "long words of a report": ("results", lambda: inputs.as_json(
        {"title": "x" * (1 << 22), "headline": "\u202e" * (1 << 16)})),
}  # fmt: skip

READ = """
import resource, sys
from pathlib import Path
from tests.faults.feeding import fed
from tests.faults.readers import readers
from undertow.errors import UndertowError
for line in sys.stdin.read().splitlines():
    name, file, folder = line.split("\\t")
    reader = readers()[name]
    try:
        reader.feed(reader.sound, Path(folder))
    except UndertowError:
        pass
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    print(file, fed(reader, Path(file).read_bytes(), Path(folder)), flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (-1, resource.RLIM_INFINITY))
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists()
    or resource.getrlimit(resource.RLIMIT_AS)[1] >= 0,
    reason="memory cannot be bounded here",
)
def test_bombs_are_refused_in_time_and_in_a_gibibyte(tmp_path: Path) -> None:
    # One process for all: what takes long is to start it.
    lines = []
    for number, (name, make) in enumerate(BOMBS.values()):
        file, folder = tmp_path / f"{number}.bomb", tmp_path / f"{number}"
        folder.mkdir()
        file.write_bytes(make())
        lines.append(f"{name}\t{file}\t{folder}")
    done = subprocess.run(
        [sys.executable, "-c", READ], input="\n".join(lines), text=True,
        capture_output=True, check=False, timeout=300, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    said = [line.rpartition(" ")[2] for line in done.stdout.splitlines()]
    assert len(said) == len(BOMBS), (list(BOMBS)[len(said)], done.stderr[-2000:])
    assert [
        bomb for bomb, what in zip(BOMBS, said, strict=True) if what.islower()
    ] == []


# ---- command lines


def test_every_command_is_drawn_with_its_options() -> None:
    stream = generator(0, "command lines")
    draws = Draws(lambda bound: int(stream.integers(bound)))
    drawn = [tuple(command_lines(draws).decode("utf-8", "replace").split("\0"))
             for _ in range(2_000)]  # fmt: skip
    groups = {path[:1] for path in ALL if len(path) > 1}
    assert {command.path for command in commands()} == {(), *groups, *ALL}
    for path in ALL:
        assert any(words[: len(path)] == path for words in drawn), path
    words = {word.partition("=")[0] for line in drawn for word in line}
    assert words >= {
        "--json", "--card", "--on", "--worker-cpus", "--worker-memory", "--track",
        "--confirm", "--divide", "--judge", "--known", "--reference", "--set",
    }  # fmt: skip


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_sound_lines_get_past_the_parser(path: tuple[str, ...], tmp_path: Path) -> None:
    """So that what is drawn around them reaches the command itself."""
    sound = next(command.sound for command in commands() if command.path == path)
    status, out, err = called(sound, tmp_path)
    assert status == 0 or not err.startswith("Usage: "), err
    assert out or err


# ---- the guard itself


def _opens_outside(folder: Path) -> None:
    (folder.parent / "outside").write_text("x")


def _starts_a_process(_: Path) -> None:
    subprocess.run(["true"], check=True)


def _asks_the_network(_: Path) -> None:
    import socket

    with pytest.raises(OSError):  # noqa: PT011 (refused, or no network)
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)


def _unpickles(_: Path) -> None:
    import pickle

    pickle.loads(pickle.dumps(Path))


@pytest.mark.parametrize(
    "act", [_opens_outside, _starts_a_process, _asks_the_network, _unpickles]
)
def test_the_guard_sees_what_reading_never_needs(
    act: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(Forbidden), guarded(folder):
        act(folder)


def test_the_guard_lets_a_folder_be_written_and_ends_what_hangs(tmp_path: Path) -> None:
    with guarded(tmp_path):
        (tmp_path / "inside").write_text(json.dumps("x"))
    with pytest.raises(Hung), guarded(tmp_path, seconds=0.05):
        time.sleep(5)


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>", "<img src=x>", "<p onclick=x>y</p>",
        "<p style='color: red'>y</p>", "<a href='javascript:x'>y</a>", "<p>\u202ey</p>",
        "<p title='\x1b'>y</p>", "<!-- y -->", "<p>", "</p>", "<style></style>",
    ],
)  # fmt: skip
def test_the_page_check_sees_what_is_foreign(inside: str) -> None:
    page = "<html><head><style>p {{}}</style></head><body>{}</body></html>"
    check_page(page.format("<p class='x'>&lt;b&gt; <a href='#y'>y</a></p>"))
    with pytest.raises(AssertionError):
        check_page(page.format(inside))
