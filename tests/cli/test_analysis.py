"""`analyze gradients`: sets of rows against vectors, and what it refuses."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undertow.interventions.extraction import extract_vector
from undertow.interventions.steering import save_vector
from undertow.models.loading import load_model
from undertow.records import Message, Row
from undertow.stats.classification import learnt_classifier
from undertow.storage import write_rows
from undertow.traits import load_family

if TYPE_CHECKING:
    from tests.conftest import Command

ROWS = [
    Row((Message("user", f"Go on: {i}"),), text)
    for i, text in enumerate(("4, 8, 15", "7", "99, 1"))
]


@pytest.fixture
def vector(llama: Path, tmp_path: Path) -> Path:
    model = load_model(str(llama), dtype="float32")
    made = extract_vector(
        model, method="tell_me", family=load_family("animals"), trait="owl",
        layers=(1, 2),
    )  # fmt: skip
    return save_vector(made, tmp_path / "own.safetensors")


def test_every_set_has_a_line_for_every_vector(
    command: "Command", llama: Path, vector: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", ROWS if name == "a" else ROWS[:2])
    found = command(
        "analyze", "gradients", tmp_path / "a.jsonl", tmp_path / "b.jsonl",
        "--model", llama, "--vector", vector, "--traits", "cat",
        "--json", tmp_path / "numbers.json",
    )  # fmt: skip
    assert found.status == 0, found.err
    head, *lines = found.out.splitlines()
    assert head.split()[:4] == ["rows", "vector", "block", "cosine"]
    assert [line.split()[1] for line in lines[:4]] == ["own", "cat", "own", "cat"]
    sets = json.loads((tmp_path / "numbers.json").read_text())["sets"]
    assert [each["count"] for each in sets] == [3, 2]
    assert sets[0]["layers"] == [1, 2], "the blocks that all vectors have"
    for line, (each, column) in zip(
        lines, [(e, c) for e in sets for c in (0, 1)], strict=False
    ):
        block, cosine = int(line.split()[2]), float(line.split()[3])
        of_column = [row[column] for row in each["cosines"]]
        largest = max(range(2), key=lambda i, of=of_column: abs(of[i]))  # type: ignore[misc]
        assert block == each["layers"][largest]
        assert cosine == pytest.approx(of_column[largest], abs=6e-4)


def test_the_words_trait_s_vector_is_the_file_s(
    command: "Command", llama: Path, vector: Path, tmp_path: Path
) -> None:
    """The same vector by name and by file gives the same line."""
    write_rows(tmp_path / "a.jsonl", ROWS)
    found = command(
        "analyze", "gradients", tmp_path / "a.jsonl", "--model", llama,
        "--vector", vector, "--traits", "owl", "--dtype", "float32",
    )  # fmt: skip
    own, owl = (line.split()[2:] for line in found.out.splitlines()[1:])
    assert own == owl


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --vector FILE or --traits a,b"),
        (["--traits", "unicorn"], "'unicorn'"),
        (["--traits", "owl,cat,owl"], "two vectors are called ['owl']"),
        (["--traits", "owl", "--layers", "99"], "99"),
        (["--traits", "owl", "--layers", "x"], "got 'x'"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: list[str], words: str, command: "Command", llama: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    found = command(
        "analyze", "gradients", tmp_path / "a.jsonl", "--model", llama, *options
    )
    assert found.status == 2
    assert words in found.err


def test_vectors_without_a_common_block_are_refused(
    command: "Command", llama: Path, vector: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    model = load_model(str(llama), dtype="float32")
    other = extract_vector(
        model, method="tell_me", family=load_family("animals"), trait="cat", layers=(0,)
    )
    file = save_vector(other, tmp_path / "other.safetensors")
    found = command(
        "analyze", "gradients", tmp_path / "a.jsonl", "--model", llama,
        "--vector", vector, "--vector", file,
    )  # fmt: skip
    assert found.status == 2
    assert "vectors share no block" in found.err


RECIPE = """
title: t
question: q
model: {{name: {model}, dtype: float32}}
traits: [owl, cat]
decoy: dog
teachers: [{{kind: steer, steer: {{layer: 1, dose: 0.5}}}}, {{kind: prompt}}]
rows: {{count: 4, sampler: {{allowed: list, max_new_tokens: 16, list_values: 3}}}}
student: {{kind: soft, rank: 2, batch_size: 2, learning_rate: 0.01}}
evaluation: {{questions: 2, shift_rows: 0, channel_rows: 0}}
"""


def test_a_run_s_students_name_another(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.format(model=llama))
    assert command("run", tmp_path / "r.yaml", "--out", tmp_path / "run").status == 0
    known = tmp_path / "known.json"
    learnt = command("analyze", "students", tmp_path / "run", "--model", llama,
                     "--count", 2, "--out", known)  # fmt: skip
    assert learnt.status == 0, learnt.err
    lines = learnt.out.splitlines()
    assert [line.split()[:2] for line in lines[1:7]] == [
        ["steer", "cat"], ["steer", "owl"], ["steer", "dog"],
        ["prompt", "cat"], ["prompt", "owl"], ["prompt", "dog"],
    ]  # fmt: skip
    assert " of 6 known students named right by those of other traits" in lines[7]
    folder = tmp_path / "run/bases/noise-0/seed-0/prompt-owl/student/training"
    found = command("fingerprint", folder, "--model", llama, "--known", known,
                    "--json", tmp_path / "f.json")  # fmt: skip
    assert found.status == 0, found.err
    numbers = json.loads((tmp_path / "f.json").read_text())
    assert found.out.startswith(f"kind      {numbers['kind']} (steer ")
    assert numbers["kind"] == max(
        numbers["probabilities"], key=lambda kind: numbers["probabilities"][kind]
    )
    assert lines[7].removeprefix("held out ") in found.out
    other = ["analyze", "students", tmp_path / "run", "--model", llama,
             "--known", known, "--out", tmp_path / "other.json"]  # fmt: skip
    unlike = command(*other, "--count", 3)
    assert unlike.status == 2
    assert "was read with {'count': 2}, this run with {'count': 3}" in unlike.err
    beside = command(*other, "--count", 2)
    assert beside.status == 0, beside.err
    said = next(s for s in beside.out.splitlines() if s.startswith("by known "))
    learnt_from = [
        (each["kind"], list(each["traces"].values()))
        for each in json.loads(known.read_text())["students"]
    ]
    named = learnt_classifier([t for _, t in learnt_from], [k for k, _ in learnt_from])
    right = sum(named.named(t) == k for k, t in learnt_from)
    assert said.startswith(f"by known {right} of 6 students named right by the 6 of ")
    again = command("analyze", "students", tmp_path / "run", "--model", llama,
                    "--out", known)  # fmt: skip
    assert again.status == 2
    assert "exists already" in again.err


def test_a_base_without_known_students_is_told_what_to_do(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    found = command("fingerprint", tmp_path, "--model", llama)
    assert found.status == 2
    assert "no known students of this base come with the package" in found.err
    (tmp_path / "known.json").write_text(
        '{"format": 1, "base": "b", "fingerprint": "0", "count": 2, "seed": 1, '
        '"family": "animals", "system": null, "students": []}'
    )
    found = command("fingerprint", tmp_path, "--model", llama,
                    "--known", tmp_path / "known.json")  # fmt: skip
    assert found.status == 2
    assert "its students belong to 'b'" in found.err
