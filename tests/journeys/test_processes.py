"""Runs and audits in several processes of this machine: what they find here."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import family_text
from tests.experiment.test_elsewhere import same_runs
from tests.journeys.same_findings import differing, figures, small_grid

from undertow.execution.executor import Needs
from undertow.execution.processes import processes
from undertow.experiment import run_experiment
from undertow.models.tiny import save_tiny
from undertow.records import Message, Row
from undertow.storage import read_json, write_rows

if TYPE_CHECKING:
    from tests.conftest import Command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny")


def test_a_run_is_the_one_that_is_done_here_though_a_process_is_killed(
    tiny: Path, tmp_path: Path
) -> None:
    import psutil

    recipe = small_grid(tiny)
    run_experiment(recipe, tmp_path / "here")
    killed: list[int] = []

    def kill(stage: str, *_: object) -> None:
        """One, once, when the first rows are there."""
        if killed or stage != "rows: jobs":
            return
        for process in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(process.cmdline()):
                    killed.append(process.pid)
                    process.kill()
                    return

    with processes(cores=2) as pool:
        run_experiment(
            recipe, tmp_path / "there", executor=pool, needs=Needs(), progress=kill
        )
    assert killed, "somebody was there"
    assert not same_runs(tmp_path / "here", tmp_path / "there")


@pytest.fixture
def audits(
    command: "Command", tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], dict[str, Any]]:
    """Gives what an audit of a few rows finds, wherever it is done."""
    monkeypatch.setattr("undertow.audit.cost.timed_flops", lambda **_: 1e11)
    rows = [Row((Message("user", f"go {i % 5}"),), f"{i}, {i % 13}") for i in range(24)]
    write_rows(tmp_path / "rows.jsonl", rows)
    pets = family_text("pets", "animal", "Which animal?", owl="owls", cat="cats")
    (tmp_path / "pets.yaml").write_text(pets)
    plants = family_text("plants", "plant", "Which plant?", oak="oaks", elm="elms")
    (tmp_path / "plants.yaml").write_text(plants)
    sets = {
        "family": tmp_path / "pets.yaml", "decoys": tmp_path / "plants.yaml",
        "permutations": 129, "personas": 2, "screening": 4, "naming_passes": 0,
        "fresh": 8, "planted": 0, "forecast": 4, "discover": "false", "triage": 3,
    }  # fmt: skip

    def audited(on: str) -> dict[str, Any]:
        changes = [part for k, v in sets.items() for part in ("--set", f"{k}={v}")]
        done = command(
            "audit", tmp_path / "rows.jsonl", "--model", tiny, "--dtype", "float32",
            *changes, "--out", tmp_path / on, "--on", on,
        )  # fmt: skip
        assert done.status == 0, done.err
        assert (" of this machine at once" in done.out) == (on == "processes")
        return figures(read_json(tmp_path / on / "audit.json"))

    return audited


def test_an_audit_finds_what_it_finds_here(
    audits: Callable[[str], dict[str, Any]],
) -> None:
    here, there = audits("here"), audits("processes")
    assert not differing(here, there)
    assert 0 < here[".p_value"] <= 1
