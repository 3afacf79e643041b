"""What is installed, what the machine has, where models lie: seen and said."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from undertow.models import environment, kernels, loading, speed
from undertow.models.checks import Check, Found
from undertow.models.environment import EXTRAS, environment_checks
from undertow.models.kernels import Built
from undertow.runs import provenance

ROOT = Path(__file__).parents[2]
TRL = [Requirement('trl>=1.0; extra == "trl"'), Requirement("torch>=2.8")]


def by_name(checks: list[Check]) -> dict[str, Found]:
    return {each.name: each.found for each in checks}


def test_everything_has_a_name_a_measurement_and_advice_where_it_is_needed() -> None:
    checks = environment_checks()
    names = by_name(checks)
    assert len(names) == len(checks)
    assert names["torch"].measured == torch.__version__
    for found in names.values():
        assert found.measured
        assert bool(found.advice) == (found.status != "ok")
    assert {
        "undertow", "python", "torch", "transformers", "requirements", "processor", "memory",
        "cuda", "device", "dtype", "bfloat16", "kernels", "folder", "models",
        "weights",
    } <= set(names)  # fmt: skip


def test_commit_and_processor_are_those_that_runs_keep() -> None:
    kept, names = provenance(), by_name(environment_checks())
    assert names["undertow"].measured.startswith(f"{kept['undertow_version']}, ")
    assert str(kept["commit"] or "no checkout") in names["undertow"].measured
    assert names["processor"].measured.startswith(f"{kept['processor']}, ")
    nothing = {"undertow_version": None, "commit": None}
    found = environment._undertow(nothing)
    assert found.measured == "not installed as a package, no checkout of git"


def test_every_extra_of_the_project_has_words() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == set(EXTRAS)


@pytest.mark.parametrize(
    ("versions", "status", "measured"),
    [
        ({"trl": "1.16.0"}, "ok", "trl 1.16.0"),
        ({"trl": None}, "advice", "not installed: trl (not installed)"),
        ({"trl": "0.9"}, "advice", "not installed: trl>=1.0 (found 0.9)"),
    ],
)
def test_an_extra_says_what_it_gives_and_how_to_get_it(
    versions: dict[str, str | None], status: str, measured: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(environment, "version", versions.get)
    found = environment._extra("trl", TRL)
    assert (found.status, found.measured) == (status, measured)
    if status == "advice":
        assert found.advice == f"for {EXTRAS['trl']}: pip install 'undertow[trl]'"


@pytest.mark.parametrize("name", ["dev", "docs", "notebooks"])
def test_what_only_developers_need_is_no_advice(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "version", lambda _: None)
    found = environment._extra(name, [Requirement(f'ruff; extra == "{name}"')])
    assert found.status == "ok"
    assert f"{EXTRAS[name]}: pip install 'undertow[{name}]'" in found.measured


def test_a_need_that_is_not_met_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", {"torch": "2.1"}.get)
    found = environment._requirements(TRL)
    assert (found.status, found.measured) == ("failed", "torch>=2.8 (found 2.1)")
    assert found.advice == "install them: pip install -c constraints.txt -e ."
    unknown = environment._requirements([])
    assert unknown.status == "advice"
    assert unknown.advice == "install it: pip install -c constraints.txt -e ."


def test_a_python_that_is_not_supported_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        environment, "platform", SimpleNamespace(python_version=lambda: "3.9.1")
    )
    found = environment._python()
    assert found.status == "advice"
    assert "3.9.1, tested with" in found.measured


@pytest.mark.parametrize(
    ("half", "chosen", "status", "words"),
    [
        (0.5, torch.bfloat16, "ok", "2 times as fast"),
        (2.0, torch.bfloat16, "advice", "say --dtype float32"),
        (2.0, torch.float32, "ok", "0.5 times as fast"),
        (0.5, torch.float32, "advice", "try --dtype bfloat16"),
    ],
)
def test_bfloat16_is_measured_against_what_auto_takes(
    half: float, chosen: torch.dtype, status: str, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    speeds = {torch.float32: 1e9, torch.bfloat16: 1e9 / half}
    monkeypatch.setattr(speed, "product_flops", lambda dtype, _: speeds[dtype])
    monkeypatch.setattr(loading, "choose_dtype", lambda *_: (chosen, "why"))
    found = environment._bfloat16("cpu")
    assert found.status == status
    assert words in found.measured + found.advice
    assert f"(1 and {1 / half:g} GFLOP/s, float32 first)" in found.measured


@pytest.mark.parametrize(
    ("built", "chosen", "status", "words"),
    [
        (
            Built(None, "no gcc is found", "install it"),
            torch.bfloat16,
            "advice",
            "install it",
        ),
        (Built(None, "switched off"), torch.bfloat16, "ok", "none: switched off"),
        (
            Built(None, "no gcc is found", "install it"),
            torch.float32,
            "ok",
            "not used here",
        ),
    ],
)
def test_kernels_are_advised_only_where_they_would_help(
    built: Built, chosen: torch.dtype, status: str, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(kernels, "kernels", lambda: built)
    monkeypatch.setattr(loading, "choose_dtype", lambda *_: (chosen, "why"))
    found = environment._kernels("auto", "cpu")
    assert found.status == status
    assert words in found.measured + found.advice


def test_a_device_that_is_not_there_is_a_failed_check() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = by_name(environment_checks(device="cuda"))
    assert found["device"].status == "failed"
    assert "no CUDA device" in found["device"].measured
    assert found["bfloat16"].status == "failed"
    assert found["cuda"].status == "ok"


@pytest.mark.parametrize(
    ("free", "status"), [(3 * 2**30, "advice"), (9 * 2**30, "ok"), (None, "ok")]
)
def test_little_memory_is_told(
    free: int | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "free_memory", lambda: free)
    assert environment._memory().status == status


def test_a_container_s_memory_is_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = environment._machine_memory()
    monkeypatch.setattr(environment, "_GROUP", tmp_path)
    assert environment._group_memory() is None
    assert environment.free_memory() == pytest.approx(machine, rel=0.2)
    for name, text in (
        ("max", "1000\n"),
        ("current", "700\n"),
        ("stat", "anon 100\ninactive_file 50\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text)
    assert environment.free_memory() == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert environment._group_memory() is None
    (tmp_path / "memory.max").write_text("100\n")
    assert environment.free_memory() == 0


def test_the_cache_is_looked_at_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "not" / "yet"))
    found = environment._folder()
    assert str(tmp_path / "not" / "yet") in found.measured
    assert "can be written" in found.measured
    assert list(tmp_path.iterdir()) == []
    models = environment._models()
    assert models.status == "advice"
    assert models.measured.startswith("0 of ")
    assert "undertow models pull smollm2-135m" in models.advice


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("UNDERTOW_CACHE", str(blocked))
    found = environment._folder()
    assert found.status == "advice"
    assert "cannot be written" in found.measured
    assert "UNDERTOW_CACHE" in found.advice


def test_a_pulled_model_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    marker = tmp_path / "models" / "smollm2-135m" / "undertow.json"
    marker.parent.mkdir(parents=True)
    marker.write_text("{}")
    found = environment._models()
    assert found.status == "ok"
    assert found.measured == "1 of 2 pulled: smollm2-135m"
