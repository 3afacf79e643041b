"""The plan: sampler, tier and grid from a pilot; the same again from disk."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from undertow.audit.census_plan import (
    ARRAYS,
    PLAN,
    Plan,
    make_plan,
    plan_digest,
    read_plan,
    write_plan,
)
from undertow.audit.census_settings import CensusSettings
from undertow.audit.reference import GREEDY
from undertow.audit.shards import survey
from undertow.errors import DatasetError, RunError
from undertow.models.reloading import ModelFacts
from undertow.models.sampling import SamplerSettings
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


def test_damaged_arrays_of_a_plan_are_refused(recorded: Plan, tmp_path: Path) -> None:
    write_plan(recorded, tmp_path)
    path = tmp_path / ARRAYS
    data, refused = bytearray(path.read_bytes()), 0
    for place in range(40, len(data), len(data) // 40):
        damaged = data.copy()
        damaged[place] ^= 16
        path.write_bytes(damaged)
        try:
            found = read_plan(tmp_path)
        except RunError:
            refused += 1
        else:  # what no reader looks at
            assert found.measuring.grid.step.tobytes() == (
                recorded.measuring.grid.step.tobytes()
            )  # fmt: skip
    assert refused > 30


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
    assert found.measuring.passing.cut is False  # numbers ask for an end


def test_a_sampler_without_a_limit_leaves_room_too(
    place: "Place", tmp_path: Path
) -> None:
    rows = [Row((Message("user", f"go {i}"),), f"word {2 * i}") for i in range(40)]
    longest = max(len(row.completion) for row in rows) + 1
    for given, most in (
        (SamplerSettings(temperature=1.0), 2 * longest),
        (SamplerSettings(max_new_tokens=40), 40),
    ):
        found = planned(place, rows, tmp_path / str(most), sampler=given)
        assert found.source == "given"
        assert found.measuring.sampler.max_new_tokens == most


def test_a_limit_at_which_rows_are_cut_is_no_guess(
    place: "Place", tmp_path: Path
) -> None:
    rows = [
        Row((Message("user", f"go {i}"),), f"{i}, {2 * i}, 77", finish="stop")
        for i in range(30)
    ]
    rows += [Row((Message("user", "go"),), f"{i}" * 5, finish="length") for i in "123"]
    found = planned(place, rows, tmp_path).measuring
    longest = max(len(row.completion) + (row.finish == "stop") for row in rows)
    assert found.sampler.max_new_tokens == longest
    assert (found.passing.cut, found.passing.most_tokens) == (True, longest)


def test_rows_that_were_drawn_greedily_have_no_reference(
    place: "Place", tmp_path: Path
) -> None:
    greedy = SamplerSettings(temperature=0.0, max_new_tokens=16)
    found = planned(place, place.rows(count=24), tmp_path, sampler=greedy)
    assert found.measuring.tier == "C"
    assert found.notes[-1] == GREEDY
    assert GREEDY not in planned(
        place, place.rows(count=24), tmp_path, reference="none"
    ).notes  # fmt: skip


def test_the_digest_of_a_plan_is_that_of_all_that_stands_in_it(
    recorded: Plan, tmp_path: Path
) -> None:
    write_plan(recorded, tmp_path)
    once = plan_digest(tmp_path)
    write_plan(recorded, tmp_path)
    assert plan_digest(tmp_path) == once
    grid = recorded.measuring.grid
    finer = replace(grid, step=grid.step / 2)
    for changed in (
        replace(recorded.measuring, grid=finer),
        replace(recorded.measuring, model=ModelFacts("tiny", "0" * 16, {})),
    ):
        write_plan(replace(recorded, measuring=changed), tmp_path)
        assert plan_digest(tmp_path) != once


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
