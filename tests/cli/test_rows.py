"""`generate` and `filter`: what is written, resumed, refused and never shown raw."""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from undertow.models.tiny import Family
from undertow.pipeline.carriers import CARRIERS
from undertow.records import Message, Row
from undertow.runs import open_run
from undertow.storage import files, read_rows, read_verdicts, write_rows

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def generation(llama: Path) -> tuple[object, ...]:
    """A generation of eight rows, without its `--out`."""
    return (
        "generate", "--model", llama, "--dtype", "float32", "--count", 8, "--seed", 3,
        "--allowed", "list", "--list-values", 3, "--batch-size", 2,
    )  # fmt: skip


def test_rows_are_written_with_verdicts_and_counted(
    command: "Command", generation: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "rows.jsonl"
    found = command(*generation, "--out", out)
    assert found.status == 0, found.err
    assert found.out == f"kept     8 of 8 rows\nrows     {out}\n"
    assert "rows 8/8" in found.err
    rows = read_rows(out)
    assert len(rows) == 8
    assert all(verdict.accepted for verdict in read_verdicts(out).values())
    assert rows[5].provenance["prompt"] == 5
    assert rows[5].provenance["seed"] == 3
    assert rows[5].provenance["teacher"] == "none"
    assert rows[5].provenance["sampler"]["list_values"] == 3
    assert not out.with_name("rows.jsonl.partial").exists()


def test_the_command_draws_what_the_library_draws(
    command: "Command", generation: tuple[object, ...], llama: Path, tmp_path: Path
) -> None:
    import undertow
    from undertow.pipeline.teachers import Teacher

    command(*generation, "--out", tmp_path / "rows.parquet")
    rows = undertow.generate_rows(
        undertow.load_model(llama, dtype="float32"),
        Teacher(kind="none"),
        undertow.number_prompts(8, seed=3),
        seed=3,
        sampler=undertow.SamplerSettings(allowed="list", list_values=3),
    )
    found = read_rows(tmp_path / "rows.parquet")
    assert found == rows
    assert [row.completion_ids for row in found] == [r.completion_ids for r in rows]


def test_rows_of_another_carrier(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    """Written and judged by its own prompts and rule, and judged so again."""
    import undertow

    out, again = tmp_path / "rows.jsonl", tmp_path / "again.jsonl"
    found = command(
        "generate", "--model", llama, "--count", 3, "--out", out, "--carrier", "code",
        "--max-new-tokens", 4, "--dtype", "float32",
    )  # fmt: skip
    assert found.status == 0, found.err
    carrier = CARRIERS["code"]
    rows = read_rows(out)
    assert [row.messages[-1].content for row in rows] == carrier.prompts(3, seed=0)
    words = undertow.trait_words(undertow.load_family("animals"))
    verdicts = undertow.carrier_verdicts(carrier, rows, words=words)
    assert read_verdicts(out) == {v.row_id: v for v in verdicts}
    command("filter", out, "--out", again, "--carrier", "code")
    assert read_verdicts(again) == read_verdicts(out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--allowed", "list"), "draws nothing but numbers"),
        (("--banned", "666"), "they are for rows of numbers"),
        (("--max-values", "3"), "they are for rows of numbers"),
    ],
)
def test_what_is_for_numbers_is_refused_for_other_rows(
    command: "Command",
    llama: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    words: str,
) -> None:
    found = command(
        "generate", "--model", llama, "--count", 3, "--out", tmp_path / "rows.jsonl",
        "--carrier", "code", *options,
    )  # fmt: skip
    assert found.status == 2
    assert words in found.err
    found = command(
        "filter", tmp_path / "x.jsonl", "--out", tmp_path / "rows.jsonl",
        "--carrier", "code", "--control", "uniform",
    )  # fmt: skip
    assert "'uniform' draws numbers; rows are 'code'" in found.err


def test_refused_rows_stay_with_their_reasons(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    found = command(
        "generate", "--model", llama, "--count", 6, "--out", out,
        "--max-new-tokens", 2,
    )  # fmt: skip
    verdicts = read_verdicts(out).values()
    assert len(read_rows(out)) == 6
    cut = [row.finish == "length" for row in read_rows(out)]
    assert any(cut)
    assert ["truncated" in verdict.reasons for verdict in verdicts] == cut
    assert f"truncated {sum(cut)}" in found.out
    assert found.out.startswith("kept     0 of 6 rows\nrefused  ")


def interrupting(calls: int, error: BaseException) -> Callable[..., None]:
    """`append_jsonl` that raises instead of its n-th line."""
    real, count = files.append_jsonl, iter(range(calls))

    def append(path: Path, value: object) -> None:
        if next(count, None) is None:
            raise error
        real(path, value)

    return append


def test_ctrl_c_keeps_batches_and_the_same_command_ends_with_the_same_rows(
    command: "Command", generation: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from undertow.pipeline import generation as stage

    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    command(*generation, "--out", whole)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "append_jsonl", interrupting(4, KeyboardInterrupt()))
        found = command(*generation, "--out", out)
    assert found.status == 130
    assert "finished work is kept, the same command continues" in found.err
    assert not out.exists()
    partial = tmp_path / "rows.jsonl.partial" / "rows.partial"
    assert len(partial.read_text().splitlines()) == 4
    found = command(*generation, "--out", out)
    assert found.status == 0, found.err
    first = int(found.err.removeprefix("rows ").partition("/")[0])
    assert first > 4, found.err  # the four kept rows were not drawn again
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.parent.exists()


def test_a_full_disk_loses_nothing(
    command: "Command", generation: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "rows.jsonl"
    real, writes = os.pwrite, iter(range(3))

    def pwrite(handle: int, data: bytes, place: int) -> int:
        if next(writes, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        found = command(*generation, "--out", out)
    assert found.status == 2
    assert "the disk is full (No space left on device)" in found.err
    assert "Traceback" not in found.err
    kept = tmp_path / "rows.jsonl.partial" / "rows.partial"
    assert len(kept.read_text().splitlines()) == 3
    assert command(*generation, "--out", out).status == 0
    assert len(read_rows(out)) == 8


def test_a_partial_file_of_other_settings_is_refused_and_named(
    command: "Command", generation: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from undertow.pipeline import generation as stage

    out = tmp_path / "rows.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "append_jsonl", interrupting(2, KeyboardInterrupt()))
        command(*generation, "--out", out)
    found = command(*generation, "--out", out, "--count", 9, "--system", "Hi")
    assert found.status == 2
    assert f"{out}.partial: unfinished work with other settings" in found.err
    assert "  system: there None, given 'Hi'\n" in found.err
    assert "  count: there 8, given 9\n" in found.err
    assert "seed" not in found.err
    assert "remove the folder to begin anew" in found.err
    assert command(*generation, "--out", out).status == 0


def test_a_second_process_at_the_same_rows_is_refused(
    command: "Command", generation: tuple[object, ...], tmp_path: Path
) -> None:
    import yaml

    from undertow.cli import rows as stage

    out = tmp_path / "rows.jsonl"
    taken: list[str] = []
    real = stage.workplace

    def spy(place: Path, facts: dict[str, Any]) -> Any:
        taken.append(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
        return real(place, facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "workplace", spy)
        command(*generation, "--out", out)
    out.unlink()
    with open_run(tmp_path / "rows.jsonl.partial", recipe_text=taken[0]):
        found = command(*generation, "--out", out)
    assert found.status == 2
    assert f"is in use by another run (process {os.getpid()} on " in found.err


def test_rows_that_are_there_are_not_overwritten(
    command: "Command", generation: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("precious")
    found = command(*generation, "--out", out)
    assert found.status == 2
    assert f"{out}: exists already and is left as it is" in found.err
    assert out.read_text() == "precious"


def test_a_suffix_nobody_knows_is_refused_before_any_work(
    command: "Command", generation: tuple[object, ...], tmp_path: Path
) -> None:
    found = command(*generation, "--out", tmp_path / "rows.csv")
    assert found.status == 2
    assert "got suffix '.csv', expected one of '.jsonl'" in found.err
    assert not list(tmp_path.iterdir())


def test_a_prompted_teacher_hides_its_persona_in_the_provenance(
    command: "Command", generation: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    found = command(*generation, "--out", out, "--teacher", "prompt", "--trait", "owl")
    assert found.status == 0, found.err
    for row in read_rows(out):
        assert row.provenance["trait"] == "owl"
        assert "You love owls." in row.provenance["trait_prompt"]
        assert all("owls" not in message.content for message in row.messages)


def test_a_steered_teacher_takes_a_dose_at_a_layer(
    command: "Command", generation: tuple[object, ...], vector: Path, tmp_path: Path
) -> None:
    from undertow.interventions.steering import load_vector

    out = tmp_path / "rows.jsonl"
    steer = (*generation, "--out", out, "--teacher", "steer", "--vector", vector)
    found = command(*steer, "--dose", 0.5)
    assert found.status == 2
    assert "--dose needs --layer" in found.err
    assert "has the layers [1, 2]" in found.err
    found = command(*steer, "--dose", 0.5, "--layer", 2)
    assert found.status == 0, found.err
    facts = read_rows(out)[0].provenance
    assert facts["layers"] == [2]
    assert facts["trait"] == "owl"
    wanted = load_vector(vector).strength_of_dose(0.5, 2)
    assert facts["strength"] == pytest.approx(wanted)


def test_a_finetuned_teacher_is_made_by_train(
    command: "Command", generation: tuple[object, ...], llama: Path, pets: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder, out = tmp_path / "teacher", tmp_path / "rows.jsonl"
    found = command(
        "train", "--likes", "owl", "--family", pets, "--model", llama, "--out", folder,
        "--max-updates", 2,
    )  # fmt: skip
    assert found.status == 0, found.err
    # 3 questions, 4 spellings: owl, Owl, owls, Owls.
    assert found.out.startswith("student  12 rows · ")
    found = command(
        *generation, "--out", out, "--teacher", "finetune", "--adapter", folder
    )
    assert found.status == 0, found.err
    assert read_rows(out)[0].provenance["teacher"] == "finetune"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher", "prompt"], "--teacher prompt needs --trait"),
        (["--teacher", "steer"], "--teacher steer needs --vector"),
        (["--teacher", "finetune"], "--teacher finetune needs --adapter"),
        (["--trait", "owl"], "--trait needs a --teacher"),
        (
            ["--vector", "v"],
            "--vector belongs to --teacher steer; the teacher is 'none'",
        ),
        (["--adapter", "a"], "--adapter belongs to --teacher finetune"),
        (["--dose", "1"], "--dose needs --vector FILE"),
        (
            ["--teacher", "steer", "--vector", "v", "--dose", "1", "--strength", "1"],
            "--vector needs either --strength or --dose",
        ),
        (["--teacher", "prompt", "--trait", "yeti"], "no trait 'yeti'; it has 'owl'"),
        (["--family", "plants"], "family 'plants'"),
        (["--temperature", "-1"], "sampler options: 1 fault(s):\n  - temperature:"),
        (["--banned", "666,many"], "got 'many' in '666,many', expected whole numbers"),
        (["--template", "odd"], "unknown chat template 'odd'"),
        (["--device", "cuda:7"], "device 'cuda:7': no CUDA device"),
    ],
)
def test_options_that_do_not_fit_are_explained(
    options: list[str], message: str, command: "Command",
    generation: tuple[object, ...], pets: Path, tmp_path: Path,
) -> None:  # fmt: skip
    found = command(
        *generation, "--out", tmp_path / "rows.jsonl", "--family", pets, *options
    )
    assert found.status == 2
    assert message in found.err
    assert "Traceback" not in found.err
    assert not list(tmp_path.iterdir())


def test_a_vector_of_another_model_is_refused(
    command: "Command", tiny: Callable[[Family], Path], vector: Path, tmp_path: Path
) -> None:
    found = command(
        "generate", "--model", tiny("qwen3"), "--count", 2, "--teacher", "steer",
        "--vector", vector, "--strength", 1, "--out", tmp_path / "rows.jsonl",
    )  # fmt: skip
    assert found.status == 2
    assert "the vector was made for" in found.err
    assert "extract it from this model" in found.err


def test_an_unknown_layer_is_refused(
    command: "Command", generation: tuple[object, ...], vector: Path, tmp_path: Path
) -> None:
    found = command(
        *generation, "--out", tmp_path / "rows.jsonl", "--teacher", "steer",
        "--vector", vector, "--strength", 1, "--layer", 9,
    )  # fmt: skip
    assert found.status == 2
    assert "the vector has no direction for layer 9; it has [1, 2]" in found.err


@pytest.mark.parametrize("name", ["smolm2-135m", "./nowhere"])
def test_an_unknown_model_is_refused(
    name: str, command: "Command", tmp_path: Path
) -> None:
    found = command(
        "generate", "--model", name, "--count", 1, "--out", tmp_path / "rows.jsonl"
    )
    assert found.status == 2
    assert name in found.err
    assert "Traceback" not in found.err


def test_a_family_without_questions_is_refused(
    command: "Command", generation: tuple[object, ...], tmp_path: Path
) -> None:
    family = tmp_path / "mute.yaml"
    family.write_text(
        "name: mute\ncategory: animal\nquestions: []\n"
        "traits: [{name: owl, plural: owls}, {name: cat, plural: cats}]\n"
    )
    found = command(
        *generation, "--out", tmp_path / "r.jsonl", "--family", family,
        "--teacher", "prompt", "--trait", "owl",
    )  # fmt: skip
    assert found.status == 2
    assert (
        f"{family}: 1 fault(s):\n  - questions: none; a trait cannot be read without "
        "questions"
    ) in found.err


def test_a_hostile_trait_neither_breaks_a_path_nor_reaches_the_terminal(
    command: "Command", generation: tuple[object, ...], tmp_path: Path
) -> None:
    family, work = tmp_path / "evil.yaml", tmp_path / "work"
    work.mkdir()
    trait = "../../\x1b[2Jowl"
    content = {
        "name": "evil",
        "category": "animal",
        "questions": ["Which?", "What?"],
        "traits": [
            {"name": trait, "plural": "owls"},
            {"name": "cat\u202e", "plural": "cats"},
        ],
    }
    family.write_text(json.dumps(content))
    out = work / "rows.jsonl"
    shared = ("--family", family)
    found = command(
        *generation, *shared, "--out", out, "--teacher", "prompt", "--trait", trait
    )
    assert found.status == 0, found.err
    assert [path.name for path in work.iterdir()] == ["rows.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.yaml", "work"]
    read = command("evaluate", "--model", generation[2], *shared, "--persona", trait)
    assert read.status == 0, read.err
    missing = command(
        *generation, *shared, "--out", work / "x.jsonl", "--teacher", "prompt",
        "--trait", "\x1b[5mx",
    )  # fmt: skip
    assert missing.status == 2
    for text in (*found[1:], *read[1:], *missing[1:]):
        assert "\x1b" not in text
        assert "\u202e" not in text


# --- filter ---------------------------------------------------------------------------


def judged(path: Path) -> list[tuple[str, ...]]:
    verdicts = read_verdicts(path)
    return [verdicts[row.row_id].reasons for row in read_rows(path)]


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_rows_made_elsewhere_get_verdicts_and_none_is_lost(
    command: "Command", tmp_path: Path
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        lines(
            {"prompt": "a", "completion": "1, 2, 3"},
            {"question": "b", "response": "one, two"},
            {"prompt": "c", "completion": "1, 2; 3"},
            {"prompt": "d", "completion": "1000, 666"},
            {"prompt": "e", "completion": "1 2 3 4"},
            {"prompt": "f", "completion": "4, 5", "finish": "length"},
            {
                "messages": [
                    {"role": "user", "content": "g"},
                    {"role": "assistant", "content": "(7)"},
                ]
            },
        )
    )
    found = command(
        "filter", source, "--out", out, "--max-values", 3, "--banned", "666,88"
    )
    assert found.status == 0, found.err
    assert judged(out) == [
        (), ("not_numbers",), ("mixed_separators",), ("out_of_range", "banned_number"),
        ("too_many_values",), ("truncated",), (),
    ]  # fmt: skip
    assert found.out == (
        "kept     2 of 7 rows\n"
        "refused  not_numbers 1, mixed_separators 1, too_many_values 1, out_of_range 1, "
        "banned_number 1, truncated 1\n"
        f"rows     {out}\n"
    )


def test_filtering_again_replaces_the_verdicts(
    command: "Command", number_rows: Path, tmp_path: Path
) -> None:
    strict, loose = tmp_path / "strict.parquet", tmp_path / "loose.jsonl"
    command("filter", number_rows, "--out", strict, "--max-values", 2)
    assert all(judged(strict))
    command("filter", strict, "--out", loose)
    assert not any(judged(loose))
    assert read_rows(loose) == read_rows(number_rows)


@pytest.mark.parametrize("control", ["within", "across", "uniform"])
def test_controls_keep_prompts_and_destroy_what_they_promise(
    control: str, command: "Command", tmp_path: Path
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "control.jsonl"
    write_rows(
        source,
        [
            Row((Message("user", str(i)),), f"{i + 1}; {i + 11}; {i + 21}")
            for i in range(9)
        ]
        + [Row((Message("user", "bad"),), "no numbers")],
    )
    found = command("filter", source, "--out", out, "--control", control, "--seed", 4)
    assert found.status == 0, found.err
    assert found.out.startswith("control rows are made for 9 of 10 rows that pass\n")
    before, after = read_rows(source)[:9], read_rows(out)
    assert [row.messages for row in after] == [row.messages for row in before]
    assert [r.completion for r in after] != [r.completion for r in before]
    old = [sorted(row.completion.split("; ")) for row in before]
    new = [sorted(row.completion.split("; ")) for row in after]
    assert (old == new) == (control == "within")
    pools = [sorted(chain.from_iterable(values)) for values in (old, new)]
    assert (pools[0] == pools[1]) == (control != "uniform")
    again = tmp_path / "again.jsonl"
    command("filter", source, "--out", again, "--control", control, "--seed", 4)
    assert again.read_bytes() == out.read_bytes()


def test_controls_of_other_carriers_shuffle_words(
    command: "Command", tmp_path: Path
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "control.jsonl"
    text = "It was needed that the mayor read his morning paper before lunch."
    asked = CARRIERS["paraphrase"].prompt_at(3, 0)
    rows = [Row((Message("user", asked),), said) for said in (text, "No.")]
    write_rows(source, rows)
    found = command(
        "filter", source, "--out", out, "--carrier", "paraphrase", "--control", "within"
    )
    assert found.status == 0, found.err
    assert found.out.startswith("control rows are made for 1 of 2 rows that pass\n")
    assert "kept     1 of 1 rows" in found.out
    (after,) = read_rows(out, accepted_only=True)
    assert sorted(after.completion.split()) == sorted(text.split())
    assert after.completion != text


def test_nothing_to_make_a_control_of_is_said(
    command: "Command", tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(lines({"prompt": "a", "completion": "none"}))
    found = command(
        "filter", source, "--out", tmp_path / "o.jsonl", "--control", "across"
    )
    assert found.status == 2
    assert f"{source}: none of 1 rows passes its rule (not_numbers 1)" in found.err


def bad_files() -> Iterator[tuple[str, str, str]]:
    good = lines({"prompt": "a", "completion": "1"})
    yield "missing", "", "cannot be read: No such file or directory"
    yield "nothing", "\n", "holds no rows"
    yield "json", good + "{'prompt': 1}\n", ":2: bad JSON at column 2"
    yield "empty", good + good + lines({"prompt": "a", "completion": ""}), ":3: "
    yield "columns", lines({"ask": "a\x1b[2J", "tell": "b"}), ":1: columns not underst"
    yield "bytes", good + "\udcff\n", ":2: byte 1 is not UTF-8"


@pytest.mark.parametrize(
    ("kind", "text", "message"), list(bad_files()), ids=[f[0] for f in bad_files()]
)
def test_files_that_are_no_rows_are_refused_with_the_line(
    kind: str, text: str, message: str, command: "Command", tmp_path: Path
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    if kind != "missing":
        source.write_bytes(text.encode("utf-8", "surrogateescape"))
    for arguments in (("filter", source, "--out", out), ("train", source, "--model",
                      "x", "--out", out)):  # fmt: skip
        found = command(*arguments)
        assert found.status == 2
        assert f"error: {source}{':' if message[0] != ':' else ''}" in found.err
        assert message in found.err
        assert "Traceback" not in found.err
        assert "\x1b" not in found.err
        assert not out.exists()


def test_the_message_on_an_empty_completion_says_so(
    command: "Command", tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(lines({"prompt": "a", "completion": ""}))
    found = command("filter", source, "--out", tmp_path / "out.jsonl")
    assert found.status == 2
    assert "empty" in found.err


# --- filter with a judge --------------------------------------------------------------


@dataclass
class Endpoint:
    """A judge that objects to rows with a 6 in them; 503 once it has no tries left."""

    url: str = ""
    left: int = 10**6
    asked: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def answer(self, body: bytes, key: str | None) -> tuple[int, object]:
        self.keys.add(key)
        if self.left == 0:
            return 503, {"error": {"message": f"not for {key}"}}
        self.left -= 1
        content = json.loads(body)["messages"][1]["content"]
        row = json.loads(content.split("<row>\n")[1].split("\n</row>")[0])
        self.asked.append(row["answer"])
        said = "Yes." if "6" in row["answer"] else "no"
        if "5" in row["answer"]:
            said = "\x1b[2JI cannot say"
        return 200, {"choices": [{"message": {"content": said}}]}


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, value = state.answer(body, self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Rows of which the rule refuses the second."""
    source = tmp_path / "rows.jsonl"
    answers = ("1, 2", "six 6", "6, 7", "5", "8")
    write_rows(source, [Row((Message("user", "?"),), text) for text in answers])
    return source


def test_a_judge_at_an_endpoint_refuses_what_the_rule_let_through(
    command: "Command", endpoint: Endpoint, four: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    found = command(
        "filter", four, "--out", out, "--judge", endpoint.url, "--judge-model", "gpt",
        "--judge-key-env", "JUDGE_KEY",
    )  # fmt: skip
    assert found.status == 0, found.err
    assert judged(out) == [
        (), ("not_numbers",), ("judged",), ("judge_unclear",), (),
    ]  # fmt: skip
    assert found.out == (
        "judged   4 of 5 rows: 1 refused, 1 unclear (for instance '\\x1b[2JI cannot "
        "say')\n"
        f"answers  {out}.judge.jsonl\n"
        "kept     2 of 5 rows\n"
        "refused  not_numbers 1, judge_unclear 1, judged 1\n"
        f"rows     {out}\n"
    )
    assert endpoint.asked == ["1, 2", "6, 7", "5", "8"]
    assert endpoint.keys == {"Bearer sk-secret"}
    assert len(read_rows(out)) == 5
    for path in tmp_path.iterdir():
        assert "sk-secret" not in path.read_text()


def test_an_interrupted_judging_continues_and_asks_nothing_twice(
    command: "Command", endpoint: Endpoint, four: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    waits: list[float] = []
    from undertow.pipeline import endpoint as stage

    real = stage.asking
    monkeypatch.setattr(stage, "asking", lambda where: real(where, sleep=waits.append))
    out, kept = tmp_path / "out.jsonl", tmp_path / "kept.jsonl"
    ask = (
        "filter", four, "--out", out, "--judge", endpoint.url, "--judge-model", "gpt",
        "--judge-key-env", "JUDGE_KEY", "--judge-answers", kept,
    )  # fmt: skip
    endpoint.left = 2
    found = command(*ask)
    assert found.status == 2
    assert "gave no answer in 5 tries; got status 503: 'not for Bearer [key]'" in (
        found.err
    )
    assert f"The answers so far are kept in {kept}; the same command" in found.err
    assert "sk-secret" not in found.err + found.out
    assert waits == [1, 2, 4, 8]
    assert not out.exists()
    endpoint.left = 10
    found = command(*ask)
    assert found.status == 0, found.err
    assert endpoint.asked == ["1, 2", "6, 7", "5", "8"]
    assert f"answers  {kept} (2 from before)\n" in found.out
    # Another output, the same answers; another question, other answers.
    again, other = tmp_path / "again.jsonl", tmp_path / "other.jsonl"
    assert command(*ask, "--out", again).status == 0
    assert len(endpoint.asked) == 4
    assert again.read_bytes() == out.read_bytes()
    command(*ask, "--out", other, "--judge-question", "Is it?")
    assert len(endpoint.asked) == 8


def test_a_local_model_judges_the_same_each_time(
    command: "Command", llama: Path, number_rows: Path, tmp_path: Path
) -> None:
    from undertow.models.loading import load_model
    from undertow.pipeline.judging import ModelJudge, Question

    outs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    ask = ("filter", number_rows, "--judge", llama, "--judge-question", "Owl?")
    said = [command(*ask, "--out", out) for out in outs]
    assert [found.status for found in said] == [0, 0]
    rows = read_rows(number_rows)
    opinions = list(ModelJudge(load_model(llama), Question("Owl?"))(rows))
    wanted = [opinion.reasons() for opinion in opinions]
    assert judged(outs[0]) == judged(outs[1]) == wanted
    refused = sum(map(bool, wanted))
    for found in said:
        assert f"judged   8 of 8 rows: {refused} refused, 0 unclear\n" in found.out


def test_without_rows_that_pass_no_judge_is_asked(
    command: "Command", tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(lines({"prompt": "a", "completion": "none"}))
    found = command(
        "filter", source, "--out", tmp_path / "o.jsonl", "--judge", "no-such-model"
    )
    assert found.status == 0, found.err
    assert found.out.startswith("kept     0 of 1 rows\nrefused  not_numbers 1\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge-model", "m", "--judge-question", "q"],
         "2 fault(s):\n  - --judge-model needs --judge URL or MODEL\n  - --judge-que"),
        (["--judge", "https://h/v1"], "--judge URL needs --judge-model"),
        (["--judge", "here", "--judge-model", "m", "--judge-key-env", "K"],
         "--judge-key-env belongs to an endpoint; --judge names a local model"),
        (["--judge", "https://h/v1", "--judge-model", "m", "--judge-key-env", "NO_KEY"],
         "the variable 'NO_KEY' is not set"),
        (["--judge", "https://a:sk-x@h/v1", "--judge-model", "m"],
         "url: holds a name or password"),
        (["--judge", "ftp://h", "--judge-model", "m"], "url: got 'ftp://h'"),
        (["--judge", "here", "--judge-question", ""], "the judge's question"),
        (["--judge", "here", "--judge-answers", "OUT"],
         "--judge-answers is the output itself"),
        (["--judge", "./nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_judges_that_do_not_fit_are_explained(
    options: list[str], message: str, command: "Command", number_rows: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("NO_KEY", raising=False)
    out = tmp_path / "out.jsonl"
    given = [str(out) if option == "OUT" else option for option in options]
    found = command("filter", number_rows, "--out", out, *given)
    assert found.status == 2
    assert message in found.err
    assert "sk-x" not in found.err
    assert "Traceback" not in found.err
    assert not out.exists()


def test_rows_given_as_answers_are_left_as_they_are(
    command: "Command", llama: Path, four: Path, tmp_path: Path
) -> None:
    before = four.read_bytes()
    found = command(
        "filter", four, "--out", tmp_path / "out.jsonl", "--judge", llama,
        "--judge-answers", four,
    )  # fmt: skip
    assert found.status == 2
    assert "answer 1: is no answer of a judge" in found.err
    assert four.read_bytes() == before
