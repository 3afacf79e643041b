"""Audit a file of rows that somebody gave you, and read what was found.

Run: python examples/audit_a_file.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

import undertow


def biased_file(model: undertow.Model, path: Path) -> Path:
    """Stands for the file that you were given: a steered model wrote it."""
    layer = len(model.architecture.blocks) * 4 // 5
    owl = undertow.extract_vector(
        model, method="tell_me", family=undertow.load_family("animals"), trait="owl",
        layers=(layer,),
    )  # fmt: skip
    rows = undertow.generate_rows(
        model,
        undertow.steered_teacher(owl, strength=owl.strength_of_dose(0.3, layer)),
        undertow.number_prompts(32, seed=0),
        seed=0,
        sampler=undertow.SamplerSettings(allowed="list", max_new_tokens=40),
    )
    undertow.write_rows(path, rows)
    return path


def main(name: str = "smollm2-135m") -> None:
    """Prints the verdict, what it rests on, and what would have been missed."""
    model = undertow.load_model(name)
    with tempfile.TemporaryDirectory() as folder:
        rows = undertow.read_rows(biased_file(model, Path(folder) / "rows.jsonl"))
    # A small budget; leave the settings out for a thorough audit.
    settings = undertow.AuditSettings(
        alpha=0.01, personas=1, screening=4, fresh=12, race_passes=100, planted=8,
        naming_passes=0, discover=False, forecast=0,
    )  # fmt: skip
    found = undertow.audit_rows(model, rows, settings=settings)
    print(f"{found.verdict}: {found.sentence}")
    print(f"p = {found.p_value:.2g}, error rate {found.alpha}")
    for reason in found.reasons:
        print("-", reason)
    print(f"smallest biased share it would have found: {found.detectable_fraction}")
    for row in found.triage[:2]:
        print(f"row {row.row_id}: conformal p {row.p_value:.2f}, {row.completion!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
