"""An audit of the benchmark as a call: the answer is the one that is given here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from undertow.audit.bench_settings import BenchmarkSettings, preset_data
from undertow.audit.benchmark import run_benchmark
from undertow.audit.contest import Answer as Verdict
from undertow.audit.contest import Workbench
from undertow.audit.others import Others
from undertow.config import check_settings
from undertow.execution.executor import Answer, Given, Needs
from undertow.models.loading import load_model
from undertow.models.tiny import save_tiny
from undertow.records import Row


@dataclass(frozen=True)
class Strangers:
    """Calls of processes that share nothing, the last one first."""

    is_here: bool = False

    def slots(self, needs: Needs) -> int:
        return 2

    def map(
        self,
        function: Callable[[Given], Answer],
        values: Iterable[Given],
        *,
        needs: Needs,
    ) -> Iterator[tuple[int, Answer]]:
        for place, value in reversed(list(enumerate(values))):
            yield place, function(value)


class Longest:
    """Suspects long rows; asks its workbench for nothing but scores."""

    name = "longest"

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Verdict:
        passes = self.bench.meter.passes
        found = self.bench.meter.signals([*audited, *reference])
        assert self.bench.meter.passes == passes
        return Verdict(float(found.tokens[: len(audited)].mean()))


@pytest.mark.slow
def test_answers_are_the_same_wherever_they_are_given(tmp_path: Path) -> None:
    checkpoint = save_tiny("llama", tmp_path / "tiny")
    model = load_model(checkpoint, dtype="float32")
    settings = check_settings(
        BenchmarkSettings, preset_data("tiny"), where="test",
        overrides=["bound_rows=0", "traits=[owl]", "controls=[]"],
    )  # fmt: skip
    options = {"name_or_path": str(checkpoint), "dtype": "float32"}
    elsewhere = Others(Strangers(), Needs(), options)
    here, there = (
        run_benchmark(
            model, settings, auditors={"longest": Longest}, others=others,
            directory=tmp_path / name,
        )
        for name, others in (("here", None), ("there", elsewhere))
    )  # fmt: skip
    assert [c.model_dump() for c in here.cells] == [c.model_dump() for c in there.cells]
    assert here.cells
