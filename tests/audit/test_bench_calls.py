"""An audit of the benchmark as a call: the answer is the one that is given here."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.execution.strangers import Strangers

from undertow.audit.bench_settings import BenchmarkSettings, preset_data
from undertow.audit.benchmark import run_benchmark
from undertow.audit.contest import Answer, Workbench
from undertow.audit.others import Others
from undertow.config import check_settings
from undertow.execution.executor import Needs
from undertow.models.loading import load_model
from undertow.models.tiny import save_tiny
from undertow.records import Row


class Longest:
    """Suspects long rows."""

    name = "longest"

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        found = self.bench.meter.signals([*audited, *reference])
        return Answer(float(found.tokens[: len(audited)].mean()))


class Told(Longest):
    """The same; its workbench knows everything that it asks for."""

    def audit(self, audited: Sequence[Row], reference: Sequence[Row]) -> Answer:
        known = self.bench.meter._scores
        assert all(row.row_id in known for row in (*audited, *reference))
        return super().audit(audited, reference)


@pytest.mark.slow
def test_answers_are_the_same_wherever_they_are_given(tmp_path: Path) -> None:
    checkpoint = save_tiny("llama", tmp_path / "tiny")
    model = load_model(checkpoint, dtype="float32")
    settings = check_settings(
        BenchmarkSettings, preset_data("tiny"), where="test",
        overrides=["bound_rows=0", "traits=[owl]", "controls=[]"],
    )  # fmt: skip
    elsewhere = Others(Strangers(), Needs(), str(checkpoint), {"dtype": "float32"})
    here, there = (
        run_benchmark(
            model, settings, auditors={"longest": make}, others=others,
            directory=tmp_path / name,
        )
        for name, make, others in (("here", Longest, None), ("there", Told, elsewhere))
    )  # fmt: skip
    assert [c.model_dump() for c in here.cells] == [c.model_dump() for c in there.cells]
    assert here.cells
