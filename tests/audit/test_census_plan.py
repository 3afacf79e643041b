"""The plan: sampler, tier and grid from a pilot; the same again from disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.audit.census_plan import PLAN, Plan, make_plan, read_plan, write_plan
from undertow.audit.census_settings import CensusSettings
from undertow.audit.shards import survey
from undertow.errors import DatasetError, RunError
from undertow.models.reloading import ModelFacts
from undertow.records import Message, Row
from undertow.storage import write_rows

if TYPE_CHECKING:
    from tests.audit.conftest import Place


def planned(
    place: "Place", rows: list[Row], folder: Path, trusted: list[Row] | None = None,
    **settings: Any,
) -> Plan:  # fmt: skip
    seen = []
    for name, own in (("rows", rows), ("trusted", trusted or [])):
        if own:
            write_rows(folder / f"{name}.jsonl", own)
            seen.append(
                survey([folder / f"{name}.jsonl"], pilot=32, subsample=8, seed=0)
            )
    given = CensusSettings(
        family=place.settings.family, decoys=place.settings.decoys, pilot=32, **settings
    )
    return make_plan(
        place.model, seen[0], seen[1] if trusted else None,
        facts=ModelFacts("tiny", place.model.fingerprint, {"device": "cpu"}),
        settings=given, tell=lambda *_: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def recorded(place: "Place", tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(place, place.rows(count=40), tmp_path_factory.mktemp("plan"))


def test_rows_of_our_own_have_their_sampler_and_partners(recorded: Plan) -> None:
    measuring = recorded.measuring
    assert (measuring.tier, recorded.source) == ("A", "recorded")
    assert measuring.sampler.allowed == "list"
    assert measuring.passing.most_tokens == 16
    assert recorded.roles.count("trait") == 3
    assert [recorded.roles[k] for k in measuring.named] == ["trait"] * 3
    assert measuring.directions.shape == (4, len(recorded.names), 32)
    np.testing.assert_allclose(
        np.linalg.norm(measuring.directions, axis=-1), 1, rtol=1e-5
    )
    assert (measuring.grid.pair_step > 0).all()


def test_a_plan_comes_back_from_disk_bit_for_bit(
    recorded: Plan, tmp_path: Path
) -> None:
    write_plan(recorded, tmp_path)
    found = read_plan(tmp_path)
    assert (found.names, found.roles, found.norms, found.notes) == (
        recorded.names, recorded.roles, recorded.norms, recorded.notes,
    )  # fmt: skip
    for name in ("model", "tier", "layers", "named", "sampler", "passing", "seed"):
        assert getattr(found.measuring, name) == getattr(recorded.measuring, name)
    for name in ("centre", "spread", "step", "pair_step"):
        one, two = (getattr(p.measuring.grid, name) for p in (found, recorded))
        assert one.tobytes() == two.tobytes()
    assert (found.measuring.directions == recorded.measuring.directions).all()


@pytest.mark.parametrize("text", ["{", "{}", '{"model": 3}'])
def test_a_damaged_plan_is_refused(text: str, recorded: Plan, tmp_path: Path) -> None:
    write_plan(recorded, tmp_path)
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(RunError, match="the plan of this census is damaged"):
        read_plan(tmp_path)


def test_given_rows_are_tier_b_and_no_reference_is_tier_c(
    place: "Place", tmp_path: Path
) -> None:
    rows = place.rows(count=24)
    given = planned(place, rows, tmp_path, trusted=place.rows(count=24, seed=6))
    assert given.measuring.tier == "B"
    assert given.measuring.passing.refusal("anything", 999, "length") is None
    alone = planned(place, rows, tmp_path, reference="none")
    assert alone.measuring.tier == "C"


def test_an_estimated_limit_leaves_room_for_longer_rows(
    place: "Place", tmp_path: Path
) -> None:
    rows = [Row((Message("user", f"go {i}"),), f"{i}, {2 * i}") for i in range(40)]
    found = planned(place, rows, tmp_path)
    assert found.source == "estimated"
    longest = max(len(row.completion) for row in rows) + 1
    assert found.measuring.sampler.max_new_tokens == 2 * longest


def test_one_row_has_a_plan(place: "Place", tmp_path: Path) -> None:
    assert planned(place, place.rows(count=1), tmp_path).measuring.tier == "A"


def test_rows_that_no_model_takes_are_refused(place: "Place", tmp_path: Path) -> None:
    rows = [Row((Message("user", "x" * 3000),), "1")]
    with pytest.raises(
        DatasetError, match=r"none of 1 rows .* longer than the context"
    ):
        planned(place, rows, tmp_path)


def test_a_reference_that_the_sampler_cannot_have_written_is_refused(
    place: "Place", tmp_path: Path
) -> None:
    words = [Row((Message("user", f"go {i}"),), f"owl {i}") for i in range(9)]
    with pytest.raises(DatasetError, match="can come from the sampler"):
        planned(place, place.rows(count=9), tmp_path, trusted=words)
