"""Jobs that are done in a process that has nothing but what it is given.

Another process is stood in for by calls in this one, on folders of their own; real ones
are in `tests/journeys/test_ray.py`.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.execution.strangers import Strangers

from undertow.errors import RunError
from undertow.experiment import Recipe, bases, elsewhere, run_experiment
from undertow.experiment.elsewhere import Order
from undertow.experiment.jobs import Plan
from undertow.experiment.parcels import pack
from undertow.models.sampling import sample
from undertow.models.tiny import save_tiny
from undertow.traits import load_family

Make = Callable[..., Recipe]
Way = Callable[..., dict[str, Any]]
STEER = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}
VOLATILE = {
    "finished", "seconds", "sha256", "time", "stage_seconds", "files", "scratch", "commit"
}  # fmt: skip
"""Times, digests of files with times in them, and what only helped on the way."""


def _verbs(strangers: Strangers) -> list[str]:
    return [each.job.verb for each in strangers.called if isinstance(each, Order)]


def same_runs(first: Path, second: Path) -> list[str]:
    """Files that differ, but for times."""
    names = [
        {p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file()} - {".lock"}
        for d in (first, second)
    ]
    assert names[0] == names[1]
    return [
        name
        for name in sorted(names[0])
        if _content(first / name) != _content(second / name)
    ]


def _content(path: Path) -> Any:
    data = path.read_bytes()
    return _steady(json.loads(data)) if path.suffix == ".json" else data


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in VOLATILE}
    return [_steady(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_a_run_is_the_same_wherever_its_jobs_are_done(
    recipe: Make, way: Way, tmp_path: Path
) -> None:
    """Rows, adapters and vectors byte for byte, and the payloads of all stages."""
    tuned = {"kind": "finetune", "finetune": {"max_updates": 2, "rank": 2}}
    asked = recipe(
        teachers=[STEER, tuned, way("soft", kind="soft", tokens="divergent")],
        noise={"levels": [0.1]},
        evaluation={"questions": 2, "shift_rows": 3, "channel_rows": 3,
                    "gradient_rows": 2, "cause_layer": 1, "every": 2},
    )  # fmt: skip
    run_experiment(asked, tmp_path / "here")
    strangers = Strangers(room=3)
    run_experiment(asked, tmp_path / "there", executor=strangers)
    assert not same_runs(tmp_path / "here", tmp_path / "there")
    assert "answers" not in _verbs(strangers), "there are more teachers than slots"
    asked_before = len(strangers.called)
    with warnings.catch_warnings(action="error"):  # nothing is taken for damaged
        run_experiment(asked, tmp_path / "there", executor=strangers)
    assert len(strangers.called) == asked_before


@pytest.mark.slow
def test_prompts_in_parts_get_the_same_answers(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    run_experiment(asked, tmp_path / "here")
    strangers = Strangers(room=3)
    run_experiment(asked, tmp_path / "there", executor=strangers)
    assert _verbs(strangers).count("answers") == 4
    assert not same_runs(tmp_path / "here", tmp_path / "there")


@pytest.mark.slow
@pytest.mark.parametrize("done", [3, 7])
def test_what_was_begun_there_is_continued_here(
    done: int, recipe: Make, tmp_path: Path
) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    run_experiment(asked, tmp_path / "here")
    with pytest.raises(RunError, match="lost"):
        run_experiment(
            asked, tmp_path / "both", executor=Strangers(room=3, fails_at=done)
        )
    run_experiment(asked, tmp_path / "both")
    assert not same_runs(tmp_path / "here", tmp_path / "both")


@pytest.mark.slow
def test_another_model_writes_there(
    recipe: Make, tmp_path: Path, tiny_llama: Path
) -> None:
    other = save_tiny("gpt2", tmp_path / "other")
    asked = recipe(
        seeds=[0], teachers=[{"kind": "prompt"}],
        writer={"name": str(other), "dtype": "float32"},
    )  # fmt: skip
    run_experiment(asked, tmp_path / "here")
    run_experiment(asked, tmp_path / "there", executor=Strangers())
    assert not same_runs(tmp_path / "here", tmp_path / "there")


@pytest.mark.slow
def test_a_worker_with_another_model_under_the_name_is_refused(
    recipe: Make, tmp_path: Path, tiny_llama: Path
) -> None:
    """Its rows would not compare: the files on its machine are others."""
    model = save_tiny("llama", tmp_path / "model")
    asked = recipe(
        seeds=[0], teachers=[STEER], model={"name": str(model), "dtype": "float32"}
    )
    with pytest.raises(RunError, match="lost"):
        run_experiment(asked, tmp_path / "run", executor=Strangers(fails_at=1))
    elsewhere._loaded.clear()  # the next worker is a new process
    save_tiny("llama", model, seed=1)
    with pytest.raises(RunError, match="begun with another model"):
        run_experiment(asked, tmp_path / "run", executor=Strangers())


@pytest.mark.slow
def test_a_worker_loads_a_base_once(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    real = bases.load

    def counted(*given: Any) -> Any:
        loaded.append(1)
        return real(*given)

    monkeypatch.setattr(elsewhere, "load", counted)
    elsewhere._loaded.clear()
    asked = recipe(seeds=[0, 1], teachers=[STEER])
    run_experiment(asked, tmp_path / "run", executor=Strangers())
    assert len(loaded) == 1


@pytest.mark.slow
def test_a_run_that_ended_there_misses_what_is_gone(
    recipe: Make, tmp_path: Path
) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    run_experiment(asked, tmp_path / "run", executor=Strangers())
    first = (tmp_path / "run/results.json").read_text()
    (tmp_path / "run/stages/noise-0/seed-0/steer-owl/cell.json").unlink()
    again = Strangers()
    with pytest.warns(RuntimeWarning, match=r"gone since it was written.*cell\.json"):
        run_experiment(asked, tmp_path / "run", executor=again)
    assert _verbs(again) == ["cell"]
    assert len((tmp_path / "run/results.json").read_text()) == pytest.approx(
        len(first), abs=200
    )


@pytest.mark.slow
def test_prompts_that_have_an_answer_are_not_asked_again(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    run_experiment(asked, tmp_path / "here")
    place = tmp_path / "run/bases/noise-0/seed-0/steer-owl"

    def lost(stage: str, done: int, total: int, note: str) -> None:
        if stage == "answers: jobs" and "steer-owl" in note:
            raise RunError("the cluster was lost")

    with pytest.raises(RunError, match="lost"):
        run_experiment(
            asked, tmp_path / "run", executor=Strangers(room=3), progress=lost
        )
    whole = next(place.glob("rows.*-*.partial"))
    known = len(whole.read_text().splitlines())
    assert 0 < known < 6
    assert place.with_name("control").joinpath("rows.jsonl").exists()
    whole.rename(place / "rows.partial")  # as a run that was begun here leaves it
    asked_for: list[int] = []

    def counted(model: Any, ids: Any, **rest: Any) -> Any:
        asked_for.append(len(ids))
        return sample(model, ids, **rest)

    monkeypatch.setattr("undertow.pipeline.generation.sample", counted)
    run_experiment(asked, tmp_path / "run", executor=Strangers(room=3))
    assert sum(asked_for) == 6 - known
    assert not same_runs(tmp_path / "here", tmp_path / "run")


@pytest.mark.slow
def test_sets_are_audited_there(recipe: Make, tmp_path: Path) -> None:
    settings = {"personas": 1, "planted": 0, "naming_passes": 0, "race_passes": 0,
                "permutations": 99, "forecast": False, "alpha": 0.05}  # fmt: skip
    asked = recipe(
        seeds=[0], teachers=[STEER],
        rows={"count": 20, "sampler": {"allowed": "list", "max_new_tokens": 24}},
        audit={"rows": 16, "settings": settings},
    )  # fmt: skip
    here = run_experiment(asked, tmp_path / "here")
    strangers = Strangers()
    there = run_experiment(asked, tmp_path / "there", executor=strangers)
    assert _verbs(strangers).count("audit") == 3
    assert [a.verdict for a in there.audits] == [a.verdict for a in here.audits]
    assert (tmp_path / "there/audits/clean/report.html").is_file()


def test_an_order_holds_what_its_job_reads(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    plan = Plan(asked, load_family("animals"), 0.0, [0], lambda _: False)
    job = next(iter(plan.phases()))[0]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "provenance.json").write_text("{}")
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "other").write_text("large")
    assert list(pack(tmp_path, job.places)) == ["stages/provenance.json"]
