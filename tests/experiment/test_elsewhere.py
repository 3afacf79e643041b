"""Jobs that are done in a process that has nothing but what it is given.

Another process is stood in for by calls in this one, on folders of their own; real ones
are in `tests/journeys/test_ray.py`.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from undertow.errors import RunError
from undertow.execution.executor import Answer, Given, Needs
from undertow.experiment import Recipe, bases, elsewhere, run_experiment
from undertow.experiment.jobs import Plan
from undertow.experiment.parcels import pack
from undertow.models.tiny import save_tiny
from undertow.traits import load_family

Make = Callable[..., Recipe]
Way = Callable[..., dict[str, Any]]
STEER = {"kind": "steer", "steer": {"layer": 1, "dose": 0.5}}
VOLATILE = {
    "finished", "seconds", "sha256", "time", "stage_seconds", "files", "scratch", "commit"
}  # fmt: skip


@dataclass
class Strangers:
    """Makes calls one by one, as processes that share nothing would."""

    called: list[str] = field(default_factory=list)
    fails_at: int | None = None
    is_here: bool = False

    def slots(self, needs: Needs) -> int:
        return 3

    def map(
        self,
        function: Callable[[Given], Answer],
        values: Iterable[Given],
        *,
        needs: Needs,
    ) -> Iterator[tuple[int, Answer]]:
        given = list(values)
        for place, value in reversed(list(enumerate(given))):  # whoever ends first
            if len(self.called) == self.fails_at:
                raise RunError("the cluster was lost")
            self.called.append(getattr(value, "job").verb)  # noqa: B009
            yield place, function(value)


def _same(first: Path, second: Path) -> list[str]:
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
    """Rows with log-likelihoods to 1e-3: other rows in a batch round otherwise."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        return [_steady(json.loads(line)) for line in data.splitlines()]
    return _steady(json.loads(data)) if path.suffix == ".json" else data


def _steady(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in VOLATILE}
    return [_steady(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_a_run_is_the_same_wherever_its_jobs_are_done(
    recipe: Make, way: Way, tmp_path: Path
) -> None:
    """Byte for byte: rows, adapters, vectors, payloads of all stages."""
    tuned = {"kind": "finetune", "finetune": {"max_updates": 2, "rank": 2}}
    asked = recipe(
        teachers=[STEER, tuned, way("soft", kind="soft", tokens="divergent")],
        noise={"levels": [0, 0.1]},
        evaluation={"questions": 2, "shift_rows": 3, "channel_rows": 3,
                    "gradient_rows": 2, "cause_layer": 1, "every": 2},
    )  # fmt: skip
    run_experiment(asked, tmp_path / "here")
    strangers = Strangers()
    run_experiment(asked, tmp_path / "there", executor=strangers)
    assert not _same(tmp_path / "here", tmp_path / "there")
    assert "answers" not in strangers.called, "there are more teachers than slots"


@pytest.mark.slow
def test_prompts_in_parts_get_the_same_answers(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    run_experiment(asked, tmp_path / "here")
    strangers = Strangers()
    run_experiment(asked, tmp_path / "there", executor=strangers)
    assert strangers.called.count("answers") == 4
    assert not _same(tmp_path / "here", tmp_path / "there")


@pytest.mark.slow
@pytest.mark.parametrize("done", [3, 7])
def test_what_was_begun_there_is_continued_here(
    done: int, recipe: Make, tmp_path: Path
) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    run_experiment(asked, tmp_path / "here")
    with pytest.raises(RunError, match="lost"):
        run_experiment(asked, tmp_path / "both", executor=Strangers(fails_at=done))
    run_experiment(asked, tmp_path / "both")
    assert not _same(tmp_path / "here", tmp_path / "both")


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
    assert not _same(tmp_path / "here", tmp_path / "there")


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


def test_an_order_holds_what_its_job_reads(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(seeds=[0], teachers=[STEER])
    plan = Plan(asked, load_family("animals"), 0.0, [0], lambda _: False)
    job = next(iter(plan.phases()))[0]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "provenance.json").write_text("{}")
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "other").write_text("large")
    assert list(pack(tmp_path, job.places)) == ["stages/provenance.json"]
