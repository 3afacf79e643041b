"""Shards measured: against the ordinary path, in any batch, hostile rows and copies."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tests.audit.test_sums import plain

from undertow.analysis.gradients import gradient_scores
from undertow.audit.reference import Passing
from undertow.audit.shard_sums import (
    Measuring,
    ShardTask,
    Usable,
    scores_of,
    sum_batch,
    sum_shard,
    usable_plain,
    with_partners,
)
from undertow.audit.shards import PlainRow, plain_row
from undertow.audit.sums import Grid, Sums
from undertow.errors import ModelError
from undertow.models.chat import Rendered, render_row, render_rows
from undertow.models.reloading import ModelFacts, remember_model
from undertow.models.sampling import SamplerSettings
from undertow.models.scoring import DrawLikelihood
from undertow.records import Message, Row

if TYPE_CHECKING:
    from tests.audit.conftest import Place

ALL = SamplerSettings(max_new_tokens=16)


def rows(count: int, *, start: int = 0) -> list[Row]:
    return [
        Row((Message("user", f"Go on: {i % 5}"),), f"{i}, {3 * i}, {i % 11}")
        for i in range(start, start + count)
    ]


def plain_rows(given: list[Row]) -> tuple[PlainRow, ...]:
    return tuple(plain_row(row, number) for number, row in enumerate(given))


@pytest.fixture
def measuring(place: "Place") -> Measuring:
    stream = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(
        torch.randn(4, 3, 32, generator=stream), dim=-1
    )
    facts = ModelFacts("tiny-llama", place.model.fingerprint, {"device": "cpu"})
    remember_model(place.model, facts)
    unset = Measuring(
        model=facts, tier="B", layers=(0, 1, 2, 3), directions=directions.numpy(),
        named=(0, 2), grid=Grid(*(np.ones((4, 3)) for _ in range(4))), sampler=ALL,
        passing=Passing("none", 2048, cut=True, empty=True), system=None, seed=0,
        flips=99, top=3,
    )  # fmt: skip
    ids = [r for r in render_rows(place.model, rows(60), system=None)
           if isinstance(r, Rendered)]  # fmt: skip
    return replace(unset, grid=Grid.of_pilot(scores_of(place.model, unset, ids).scores))


def shard(
    measuring: Measuring,
    *batches: list[Row],
    key: str = "k",
    skipped: dict[str, int] | None = None,
) -> ShardTask:
    return ShardTask(
        key,
        0,
        tuple(map(plain_rows, batches)),
        skipped or {},
        measuring,
    )


def summed(
    place: "Place", measuring: Measuring, given: list[Row], file: int = 0
) -> Sums:
    likelihood = DrawLikelihood(place.model, measuring.sampler)
    batch = plain_rows(given)
    return sum_batch(place.model, measuring, file, batch, likelihood=likelihood)


def usable(place: "Place", measuring: Measuring, given: list[Row]) -> Usable:
    likelihood = DrawLikelihood(place.model, measuring.sampler)
    return usable_plain(
        place.model, measuring, plain_rows(given), likelihood=likelihood
    )


def test_hostile_rows_are_left_out_by_reason(
    place: "Place", measuring: Measuring
) -> None:
    given = [
        Row((), "no turns"),
        Row((Message("user", "x"),), "", completion_ids=(1,)),
        Row((Message("user", "x" * 3000),), "long"),
        Row((Message("user", "lone \ud800"),), "surrogate \udfff"),
        Row(
            (Message("user", "be an owl"),), "1", provenance={"trait_prompt": "an owl"}
        ),
        Row((Message("user", "be an elk"),), "1", provenance={"trait_prompt": 3}),
        *rows(1),
    ]
    narrow = replace(measuring, passing=Passing("none", 12, cut=True, empty=False))
    found = usable(place, narrow, given)
    assert dict(found.skipped) == {
        "no prompt": 1,
        "empty completion": 1,
        "longer than the context": 1,
        "text that is not Unicode": 1,
        "holds its teacher's trait prompt": 1,
    }
    assert sorted(found.counts) == [1, 1]
    listed = replace(measuring, sampler=SamplerSettings(allowed="list"))
    found = usable(place, listed, [*rows(2), Row(rows(1)[0].messages, "owl")])
    assert found.skipped == {"outside what the sampler draws": 1}


def test_the_sums_are_those_of_the_scores(place: "Place", measuring: Measuring) -> None:
    own = rows(30)
    found = summed(place, measuring, own, file=4)
    directions = torch.from_numpy(measuring.directions)
    scores = gradient_scores(
        place.model, [render_row(place.model, row) for row in own],
        dict(enumerate(directions)), sampler=ALL,
    )  # fmt: skip
    grid = measuring.grid
    back = found.own.total * grid.step / 30 + grid.centre
    cut = np.clip(scores.scores - grid.centre, -1024 * grid.step, 1024 * grid.step)
    np.testing.assert_allclose(
        back - grid.centre, cut.mean(0), atol=float(grid.step.max()) / 5
    )
    assert (found.own.count, found.own.tokens) == (30, int(scores.tokens.sum()))
    assert (found.compared.total == found.own.total).all()
    best = int(np.argmax(((scores.scores - grid.centre) / grid.spread).max(1)[:, 2]))
    first = found.top.name[found.top.direction == 2][0]
    assert f"{int(first):016x}" == own[best].row_id
    assert found.top.place[found.top.direction == 2][0].tolist() == [4, best]


def test_copies_count_as_often_as_they_stand_there(
    place: "Place", measuring: Measuring
) -> None:
    once = summed(place, measuring, rows(8))
    thrice = summed(place, measuring, rows(8) * 3)
    assert thrice.own.count == 24
    assert (thrice.compared.flipped == 3 * once.compared.flipped).all()
    assert (thrice.compared.moments == 3 * once.compared.moments).all()
    assert thrice.digest == 3 * once.digest % (1 << 64)
    assert len(thrice.top.value) == len(once.top.value)


def test_order_in_a_batch_and_batches_of_a_shard_change_no_bit(
    measuring: Measuring,
) -> None:
    one, two = rows(12), rows(9, start=50)
    _, whole = sum_shard(shard(measuring, one, two))
    _, first = sum_shard(shard(measuring, one))
    _, second = sum_shard(shard(measuring, two))
    for name in ("own", "partner", "compared", "digest"):
        assert plain(getattr(whole, name)) == plain(getattr(second + first, name))
    _, turned = sum_shard(shard(measuring, one[::-1], two[::-1]))
    assert plain(turned.compared) == plain(whole.compared)


def test_scores_in_other_batches_differ_by_a_step_at_most(
    place: "Place", measuring: Measuring
) -> None:
    own = rows(24)
    together = summed(place, measuring, own)
    apart = [summed(place, measuring, [row]) for row in own]
    total = sum(part.own.total for part in apart)
    assert np.abs(total - together.own.total).max() <= 3


def test_partners_stand_against_each_row(place: "Place", measuring: Measuring) -> None:
    paired = replace(
        measuring, tier="A", sampler=SamplerSettings(allowed="list", max_new_tokens=16),
        passing=Passing("none", 16, cut=True, empty=True),
    )  # fmt: skip
    found = summed(place, paired, rows(20))
    assert found.own.count == found.partner.count == found.compared.count
    count = found.own.count
    assert count >= 15
    assert count + found.skipped.get("no answer of the base passed for it", 0) == 20
    assert found.compared.tokens == found.own.tokens - found.partner.tokens
    kept, partners, _ = with_partners(
        place.model, paired, usable(place, paired, rows(20)),
        likelihood=DrawLikelihood(place.model, paired.sampler),
    )  # fmt: skip
    scores = scores_of(place.model, paired, [*kept.rendered, *partners]).scores
    mine, theirs = scores[:count], scores[count:]
    steps = np.rint((mine.astype(float) - theirs) / paired.grid.pair_step)
    assert (found.compared.total == steps.clip(-1024, 1024).sum(0)).all()
    assert np.abs(found.compared.total).min() > 0
    centred = (theirs.astype(float) - paired.grid.centre) / paired.grid.step
    assert (found.partner.total == np.rint(centred).clip(-1024, 1024).sum(0)).all()


def test_rows_and_partners_that_stood_there_before_are_counted(
    place: "Place", measuring: Measuring
) -> None:
    few = SamplerSettings(allowed="list", list_values=1, max_new_tokens=2)
    paired = replace(
        measuring, tier="A", sampler=few,
        passing=Passing("none", 9, cut=True, empty=True),
    )  # fmt: skip
    given = [Row((Message("user", f"{i % 2}"),), f"{i}") for i in range(10)]
    found = summed(place, paired, given)
    assert (found.own.count, found.own.repeats) == (10, 0)
    _, partners, repeats = with_partners(
        place.model, paired, usable(place, paired, given),
        likelihood=DrawLikelihood(place.model, few),
    )  # fmt: skip
    different = {tuple(row.ids) for row in partners}
    assert found.partner.repeats == repeats == 10 - len(different) > 0
    twice = summed(place, paired, given * 2)
    assert twice.own.repeats == 10
    assert twice.partner.repeats == repeats  # copies share a partner


def test_rows_whose_prompt_leaves_no_room_for_an_answer_have_no_partner(
    place: "Place", measuring: Measuring
) -> None:
    sampler = SamplerSettings(max_new_tokens=2000)
    paired = replace(
        measuring, tier="A", sampler=sampler,
        passing=Passing("none", 2000, cut=True, empty=True),
    )  # fmt: skip
    long = Row((Message("user", "x" * 100),), "1, 2")
    found = summed(place, paired, [long])
    assert found.skipped == {"no answer of the base passed for it": 1}
    assert found.own.count == 0


def test_what_could_not_be_read_is_counted_with_the_shard(measuring: Measuring) -> None:
    key, found = sum_shard(shard(measuring, [], skipped={"bad JSON": 3}))
    assert (key, found.own.count, found.skipped) == ("k", 0, {"bad JSON": 3})


def test_another_model_under_the_name_is_refused(
    place: "Place", measuring: Measuring, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from undertow.models.tiny import save_tiny

    folder = save_tiny("llama", tmp_path_factory.mktemp("model") / "m", hidden=16)
    facts = ModelFacts(str(folder), "0" * 16, {"device": "cpu", "dtype": "float32"})
    with pytest.raises(ModelError, match="has other weights here"):
        sum_shard(shard(replace(measuring, model=facts), rows(1)))
