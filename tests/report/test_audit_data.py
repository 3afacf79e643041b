"""The order and the CSV files of an audit's figures."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undertow.findings import Direction, Findings, Hypothesis
from undertow.report.audit_data import (
    audit_figure_data,
    best_doses,
    heat_rows,
    hypothesis_rows,
    line_names,
    ordered_directions,
    peak,
    write_audit_figure_data,
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_has_its_file(trait_found: Findings, tmp_path: Path) -> None:
    written = write_audit_figure_data(trait_found, tmp_path)
    assert {path.relative_to(tmp_path).as_posix(): len(read(path)) for path in written} == {
        "figures/directions.csv": 41 * 30,
        "figures/hypotheses.csv": 44,
        "figures/null.csv": 2001,
        "figures/explanation.csv": 501,
        "figures/power.csv": 8,
        "figures/baselines.csv": 4,
        "figures/battery.csv": 20,
    }  # fmt: skip
    first = read(tmp_path / "figures" / "directions.csv")[24]
    owl = trait_found.directions[0]
    assert (first["direction"], first["role"], first["layer"]) == ("owl", "trait", "24")
    assert float(first["z"]) == owl.z[24]
    assert float(first["adjusted_p"]) == owl.adjusted_p
    points = read(tmp_path / "figures" / "power.csv")
    assert [float(p["fraction"]) for p in points][:3] == [0.005, 0.01, 0.02]


def test_the_size_decides_what_is_largest() -> None:
    assert peak([1.0, -3.0, 2.0]) == 1
    assert peak([None, 2.0, 2.0, math.nan]) == 1
    assert peak([None, math.nan]) is None
    assert peak([]) is None


def test_traits_come_first_and_the_strongest_of_them(trait_found: Findings) -> None:
    names = [d.name for d in ordered_directions(trait_found)]
    assert names[:3] == ["owl", "eagle", "wolf"]
    roles = [d.role for d in ordered_directions(trait_found)]
    assert list(dict.fromkeys(roles)) == ["trait", "decoy", "persona", "random"]


def test_layers_without_a_number_stay_empty(trait_found: Findings) -> None:
    short = Direction(name="x", role="given", z=[1.0])
    found = heat_rows(
        trait_found.model_copy(update={"directions": [short], "layers": [4, 9]})
    )
    assert [(r.layer, r.z) for r in found] == [(4, 1.0), (9, None)]


def test_the_leader_comes_first_and_who_left_the_race_last(
    trait_found: Findings,
) -> None:
    rows = hypothesis_rows(trait_found)
    assert (rows[0].name, rows[0].kind, rows[0].behind) == ("owl", "steer", None)
    stayed = [r.behind for r in rows if not r.dropped and r.behind is not None]
    assert stayed == sorted(stayed)
    left = [bool(r.dropped) for r in rows]
    assert left == sorted(left)
    # Of two hypotheses of one name the one with a layer says it.
    assert line_names(rows)[0] == "owl @24"


def test_of_each_vector_the_dose_that_raced_is_drawn(trait_found: Findings) -> None:
    def dose(name: str, rows: int, evidence: float | None, **of: Any) -> Hypothesis:
        own: dict[str, Any] = {
            "kind": "steer",
            "trait": "owl",
            "rows": rows,
            "log_evalue": evidence,
        }
        known: dict[str, Any] = {"nats_per_row": 1.0, "reference_nats_per_row": None}
        return Hypothesis(name=name, **(own | known | of))

    found = trait_found.model_copy(update={"hypotheses": [
        dose("a", 24, 50.0), dose("b", 48, 20.0), dose("c", 48, 30.0),
        dose("d", 24, None, trait="elk"), dose("e", 24, 1.0, trait="elk"),
        dose("f", 8, 1.0, kind="prompt"), dose("g", 8, 1.0, trait=None),
        dose("h", 8, 1.0, trait=None),
    ]})  # fmt: skip
    drawn = best_doses(hypothesis_rows(found))
    assert sorted(row.name for row in drawn) == ["c", "e", "f", "g", "h"]


def test_what_is_missing_is_an_empty_field(
    inconclusive: Findings, tmp_path: Path
) -> None:
    write_audit_figure_data(inconclusive, tmp_path)
    (power,) = read(tmp_path / "figures" / "power.csv")
    assert power == {"fraction": "0.1", "power": "", "bound": ""}
    (hypothesis,) = read(tmp_path / "figures" / "hypotheses.csv")
    assert (hypothesis["nats_per_row"], hypothesis["behind_low"]) == ("", "")
    bare = inconclusive.model_copy(
        update={"directions": [], "hypotheses": [], "max_null": None, "power": None,
                "baselines": [], "discovery": None}
    )  # fmt: skip
    assert audit_figure_data(bare) == {}


def test_no_field_is_a_formula_or_hides_anything(
    hostile_findings: Findings, evil: Sequence[str], tmp_path: Path
) -> None:
    for path in write_audit_figure_data(hostile_findings, tmp_path):
        raw = path.read_text(encoding="utf-8")
        assert not {"\x1b", "\0", "\u202e"} & set(raw)
    names = {r["name"] for r in read(tmp_path / "figures" / "hypotheses.csv")}
    assert "'" + evil[3] in names
