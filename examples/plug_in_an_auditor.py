"""An auditor of your own beside undertow's, on labelled sets made from seeds.

Run: python examples/plug_in_an_auditor.py [MODEL]      (the same: undertow benchmark audit)
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import undertow
from undertow.audit.bench_settings import BenchmarkSettings, preset_data
from undertow.audit.benchmark import AUDITORS, run_benchmark
from undertow.audit.contest import Answer, Workbench


class LengthAuditor:
    """Suspects rows that are longer than the reference's."""

    name = "length"

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench  # family, decoys, measurements that all auditors share

    def audit(
        self, audited: Sequence[undertow.Row], reference: Sequence[undertow.Row]
    ) -> Answer:
        """Larger for more suspicious; a trait and a p-value may be added."""
        return Answer(score=self.length(audited) - self.length(reference))

    @staticmethod
    def length(rows: Sequence[undertow.Row]) -> float:
        """Mean number of characters."""
        return sum(len(row.completion) for row in rows) / len(rows)


def main(name: str = "smollm2-135m") -> None:
    """A benchmark far too small to mean anything: AUROC of two auditors."""
    small = {
        "traits": ["owl"], "interventions": ["steer"], "controls": [], "bound_rows": 0,
        "designs": [{"rows": 16, "audits": 1, "clean": 2}],
    }  # fmt: skip
    settings = BenchmarkSettings.model_validate(preset_data("tiny") | small)
    auditors = {"undertow": AUDITORS["undertow"], "length": LengthAuditor}
    with tempfile.TemporaryDirectory() as folder:
        result = run_benchmark(
            undertow.load_model(name), settings, auditors=auditors,
            directory=Path(folder) / "bench",
        )  # fmt: skip
    for cell in result.cells:
        area = None if cell.auroc is None else cell.auroc.value
        print(f"{cell.auditor:<9} {cell.intervention}: {cell.rows} rows, AUROC {area}")


if __name__ == "__main__":
    main(*sys.argv[1:])
