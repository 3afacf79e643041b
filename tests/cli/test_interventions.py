"""`vector` and `noise`: files that the library reads, tables, clear refusals."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from undertow.interventions.extraction import Method

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.mark.parametrize("method", ["tell_me", "prompts", "trained"])
def test_a_vector_is_the_one_that_the_library_extracts(
    method: Method, command: "Command", llama: Path, pets: Path, tmp_path: Path
) -> None:
    import undertow

    out = tmp_path / "owl.safetensors"
    found = command(
        "vector", "extract", "--model", llama, "--dtype", "float32", "--family", pets,
        "--trait", "owl", "--method", method, "--layers", "2,0", "--prompts", 5,
        "--seed", 3, "--out", out,
    )  # fmt: skip
    assert found == (0, f"vector   {out}\n", found.err)
    wanted = undertow.extract_vector(
        undertow.load_model(llama, dtype="float32"),
        method=method,
        family=undertow.load_family(pets),
        trait="owl",
        layers=(2, 0),
        prompts=undertow.number_prompts(5, seed=3),
        seed=3,
    )
    got = undertow.load_vector(out)
    assert got.layers == (2, 0)
    assert got.method == method
    assert bool((got.directions == wanted.directions).all())
    assert got.fingerprint == wanted.fingerprint


def test_a_vector_is_shown_with_norms_and_strengths(
    command: "Command", vector: Path
) -> None:
    import undertow

    owl = undertow.load_vector(vector)
    found = command("vector", "show", vector)
    assert found.status == 0
    lines = found.out.splitlines()
    assert lines[0].split() == ["trait", "owl"]
    assert f"({owl.fingerprint})" in lines[2]
    for line, layer in zip(lines[-2:], owl.layers, strict=True):
        number, norm, stream, strength = line.split()
        assert int(number) == layer
        assert float(norm) == pytest.approx(owl.norm(layer), abs=1e-3)
        assert float(strength) * float(norm) == pytest.approx(float(stream), rel=1e-2)


def test_a_vector_is_shown_as_json(command: "Command", vector: Path) -> None:
    lines = command("vector", "show", vector).out.splitlines()
    facts = json.loads(command("vector", "show", vector, "--json").out)
    assert facts["trait"] == "owl"
    assert lines[1].split(None, 1)[1] == f"{facts['method']}, over {facts['n']}"
    assert lines[2].split(None, 1)[1] == f"{facts['model']} ({facts['fingerprint']})"
    names = [line.split()[0] for line in lines[3:]]
    assert names[: len(facts["notes"])] == sorted(facts["notes"])
    rows = [line.split() for line in lines[-len(facts["layers"]) :]]
    assert [int(row[0]) for row in rows] == [at["layer"] for at in facts["layers"]]
    for row, at in zip(rows, facts["layers"], strict=True):
        numbers = [at["norm"], at["stream"], at["strength_of_dose_1"]]
        assert row[1:] == [f"{number:.3f}" for number in numbers]


def test_a_sweep_prints_its_points_and_the_one_it_chose(
    command: "Command", llama: Path, pets: Path, vector: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep.json"
    found = command(
        "vector", "sweep", vector, "--model", llama, "--family", pets,
        "--doses", "0.1,0.6", "--rows", 2, "--questions", 2, "--allowed", "list",
        "--max-leak", 1, "--out", out,
    )  # fmt: skip
    assert found.status == 0, found.err
    result = json.loads(out.read_text())
    points = result["points"]
    assert [(p["layer"], p["dose"]) for p in points] == [
        (1, 0.1), (1, 0.6), (2, 0.1), (2, 0.6),
    ]  # fmt: skip
    assert all(p["passed"] == 1.0 for p in points)
    best = max(points, key=lambda p: p["share"])
    assert result["chosen"] == {"layer": best["layer"], "strength": best["strength"]}
    lines = found.out.splitlines()
    assert len(lines) == 1 + 4 + 2
    assert lines[-2] == (
        f"chosen   --layer {best['layer']} --strength {best['strength']:.6g}"
    )
    assert "sweep 4/4" in found.err


def test_a_sweep_that_no_point_passes_shows_the_points(
    command: "Command", llama: Path, pets: Path, vector: Path
) -> None:
    # Free completions of a model that writes nonsense are no number rows.
    found = command(
        "vector", "sweep", vector, "--model", llama, "--family", pets,
        "--doses", "0.1", "--layers", "1", "--rows", 2, "--questions", 2,
    )  # fmt: skip
    assert found.status == 2
    assert "no point passes the gate (leak at most 0.1, rows passing at least 0.5)" in (
        found.err
    )
    assert "layer 1 dose 0.1: share 0." in found.err


def test_a_baked_vector_is_a_checkpoint_that_prefers_alike(
    command: "Command", llama: Path, pets: Path, vector: Path, tmp_path: Path
) -> None:
    import numpy as np

    import undertow

    out = tmp_path / "baked"
    found = command(
        "vector", "bake", "--vector", vector, "--model", llama, "--dtype", "float32",
        "--strength", 3, "--out", out,
    )  # fmt: skip
    assert found == (0, f"model    {out}\n", found.err)
    family = undertow.load_family(pets)
    model = undertow.load_model(llama, dtype="float32")
    before = undertow.preference(model, family).total_logprobs
    with undertow.steering(model, undertow.load_vector(vector), strength=3.0):
        wanted = undertow.preference(model, family).total_logprobs
    plain = undertow.load_model(out, dtype="float32")
    got = undertow.preference(plain, family).total_logprobs
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert np.abs(got - before).max() > 0.1
    facts = json.loads((out / "undertow.json").read_text())["provenance"]
    assert facts["vector"] == str(vector)
    assert facts["strength"] == 3


def test_baking_needs_a_vector(command: "Command", llama: Path, tmp_path: Path) -> None:
    found = command("vector", "bake", "--model", llama, "--out", tmp_path / "baked")
    assert found.status == 2
    assert "--vector FILE is missing" in found.err


def test_noise_is_the_library_s_and_leaves_its_provenance(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    import undertow

    out = tmp_path / "noised"
    found = command(
        "noise", "--model", llama, "--dtype", "float32", "--p", 0.1, "--seed", 4,
        "--scope", "mlp,embedding", "--formula", "faithful", "--out", out,
    )  # fmt: skip
    assert found.status == 0, found.err
    wanted = undertow.load_model(llama, dtype="float32")
    base = wanted.fingerprint
    report = undertow.add_weight_noise(
        wanted, p=0.1, seed=4, scope=("mlp", "embedding"), formula="faithful"
    )
    got = undertow.load_model(out, dtype="float32")
    weights = dict(got.module.named_parameters())
    for name, parameter in wanted.module.named_parameters():
        assert bool((weights[name] == parameter).all()), name
    facts = json.loads((out / "undertow.json").read_text())
    assert facts["fingerprint"] == got.fingerprint
    assert facts["provenance"]["of"] == base != got.fingerprint
    assert facts["provenance"]["noise"] == 0.1
    assert facts["provenance"]["matrices"] == [m.name for m in report.matrices]
    assert found.out == (
        f"noised   {len(report.matrices)} matrices, p = 0.1\n"
        f"model    {out} (fingerprint {got.fingerprint})\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise", "--p", "-1"], "p: got -1.0, expected a number of 0 or more"),
        (["noise", "--p", "nan"], "p: got nan"),
        (
            ["noise", "--p", "0.1", "--scope", "mlp,heads"],
            "got 'mlp,heads', expected some of mlp,attention,embedding",
        ),
        (["vector", "extract", "--trait", "yeti"], "no trait 'yeti'"),
        (["vector", "extract", "--trait", "owl", "--layers", "99"], "99"),
        (["vector", "extract", "--trait", "owl", "--layers", "a"], "got 'a' in 'a'"),
        (["vector", "extract", "--trait", "owl", "--family", "x.yaml"], "x.yaml"),
    ],
)
def test_bad_values_are_explained(
    arguments: list[str], message: str, command: "Command", llama: Path, tmp_path: Path
) -> None:
    found = command(*arguments, "--model", llama, "--out", tmp_path / "x.safetensors")
    assert found.status == 2
    assert message in found.err
    assert "Traceback" not in found.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all", b"\0" * 64])
def test_a_file_that_is_no_vector_is_refused(
    content: bytes | None, command: "Command", tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    if content is not None:
        path.write_bytes(content)
    found = command("vector", "show", path)
    assert found.status == 2
    assert f"{path}: no steering vector of undertow's" in found.err
    assert "make one with: undertow vector extract" in found.err


def test_files_that_are_there_are_left_as_they_are(
    command: "Command", llama: Path, vector: Path, tmp_path: Path
) -> None:
    for arguments in (
        ("noise", "--p", 0.1),
        ("vector", "extract", "--trait", "owl"),
        ("vector", "bake", "--vector", vector, "--strength", 1),
        ("vector", "sweep", vector),
    ):
        found = command(*arguments, "--model", llama, "--out", tmp_path)
        assert found.status == 2
        assert f"{tmp_path}: exists already and is left as it is" in found.err
