"""Sets come from their names alone, pair rows by prompt, and hold the share they say."""

from pathlib import Path
from typing import Any

import pytest

from undertow.audit.bench_questions import DISTINCT, question_prompts
from undertow.audit.bench_sets import (
    CarrierPools,
    Pool,
    Source,
    carrier_prompts,
    control_pool,
    draw_set,
    foreign_pool,
    sampled_pool,
    teacher_sources,
)
from undertow.audit.bench_settings import (
    BenchmarkSettings,
    CarrierSettings,
    preset_data,
)
from undertow.audit.benchmark import _silent
from undertow.errors import ConfigError
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.pipeline.teachers import Teacher
from undertow.records import Message, Row
from undertow.stats import binomial_interval

SAMPLER = SamplerSettings(allowed="list", list_values=3, max_new_tokens=16)
CARRIER = CarrierSettings(name="list", sampler=SAMPLER)
STEER = Source("steer", "owl", 3, 0.5)


def _pool(text: str, count: int) -> Pool:
    return Pool(
        {i: Row((Message("user", f"p{i}"),), f"{text} {i}") for i in range(count)}, 1.0
    )


def _pools(count: int = 40, taught: int = 20) -> CarrierPools:
    base = (_pool("a", count), _pool("b", count), _pool("c", count))
    return CarrierPools(
        CARRIER, base, {STEER: _pool("t", taught), Source("within"): _pool("w", count)}
    )


def _who(rows: Any) -> list[str]:
    return [row.completion.split()[0] for row in rows]


def _draw(source: Source = STEER, *, index: int = 0, **size: Any) -> Any:
    facts = {"rows": 20, "fraction": 0.25, "index": index, "seed": 3}
    return draw_set(_pools(), source, **(facts | size))


def test_a_set_holds_the_share_and_pairs_by_prompt() -> None:
    found = _draw()
    assert _who(found.audited).count("t") == 5
    assert "t" not in _who(found.reference)
    for mine, other in zip(found.audited, found.reference, strict=True):
        assert mine.messages == other.messages
        assert mine.completion != other.completion
    ids = [row.row_id for row in found.audited]
    assert ids == sorted(ids)
    assert len(set(ids)) == 20
    assert found.name == "list steer owl block 3 dose 0.5 rows 20 share 0.25 no 0"
    assert _draw() == found
    assert {r.row_id for r in _draw(index=1).audited} != set(ids)


def test_a_clean_set_draws_sides_anew_for_every_prompt() -> None:
    found = [_draw(Source("none"), index=i, rows=40) for i in range(30)]
    assert {each.fraction for each in found} == {0.0}
    for side in ("audited", "reference"):
        who = [name for each in found for name in _who(getattr(each, side))]
        for name in "abc":
            share = binomial_interval(who.count(name), len(who), confidence=0.999)
            assert share.low < 1 / 3 < share.high


def test_controls_are_not_compared_with_what_they_are_made_of() -> None:
    found = _draw(Source("within"), fraction=1.0)
    assert set(_who(found.audited)) == {"w"}
    assert set(_who(found.reference)) == {"b", "c"}


def test_a_set_that_needs_more_rows_than_there_are_is_none() -> None:
    assert _draw(rows=41) is None
    assert _draw(rows=40, fraction=0.55) is None  # 22 of a teacher that wrote 20
    assert _draw(rows=40, fraction=0.5) is not None
    assert _who(_draw(rows=10, fraction=0.01).audited).count("t") == 1


def test_questions_are_different_and_a_prefix_of_one_order() -> None:
    found = question_prompts(600, seed=1)
    assert len(set(found)) == 600
    assert question_prompts(50, seed=1) == found[:50]
    assert question_prompts(50, seed=2) != found[:50]
    assert all("{" not in text for text in found)
    assert len(set(question_prompts(DISTINCT, seed=0))) == DISTINCT
    with pytest.raises(ConfigError, match=f"got {DISTINCT + 1}, there are {DISTINCT}"):
        question_prompts(DISTINCT + 1, seed=0)


def test_number_prompts_ask_for_no_more_than_the_carrier_may_write() -> None:
    prompts = carrier_prompts(CARRIER.model_copy(update={"prompts": 30}), seed=0)
    assert len(set(prompts)) == 30
    assert not any(" 10 " in text for text in prompts)


def test_blocks_are_dealt_out_to_traits() -> None:
    settings = BenchmarkSettings(traits=("owl", "cat", "dog", "fox"), doses=(0.2, 0.5))
    found = teacher_sources(settings, depth=30)
    assert len(found) == 4 * 3
    layers = {s.trait: s.layer for s in found if s.intervention == "steer"}
    assert layers == {"owl": 10, "cat": 15, "dog": 20, "fox": 10}
    assert found[0].name == "prompt owl"
    assert found[2].name == "steer owl block 10 dose 0.5"


def test_free_numbers_pass_a_filter_unless_told_otherwise() -> None:
    assert CarrierSettings(name="numbers").passed == "numbers"
    assert CarrierSettings(name="numbers", filter="none").passed == "none"
    assert CarrierSettings(name="list").passed == "none"
    assert CarrierSettings(name="answers", filter="numbers").passed == "numbers"


@pytest.mark.parametrize("name", ["tiny", "standard"])
def test_presets_are_settings(name: Any) -> None:
    settings = BenchmarkSettings.model_validate(preset_data(name))
    assert {c.passed for c in settings.carriers} == {"none"}
    assert max(d.clean for d in settings.designs) == (70 if name == "standard" else 4)


# ── pools of a tiny model ────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama", layers=1, hidden=16)


def _sampled(model: Model, count: int, path: Path | None, **options: Any) -> Pool:
    prompts = carrier_prompts(CARRIER, seed=0)[:count]
    facts: dict[str, Any] = {
        "carrier": CARRIER, "teacher": Teacher(kind="none"), "seed": 0, "path": path,
        "tell": _silent,
    }  # fmt: skip
    return sampled_pool(model, Source("none"), prompts, **(facts | options))


def test_a_longer_pool_continues_a_shorter_one(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    short, kept = _sampled(model, 80, path), path.read_bytes()
    assert sorted(short.rows) == list(range(80))
    assert _sampled(model, 80, path) == short
    assert path.read_bytes() == kept
    longer = _sampled(model, 130, path)
    assert longer.rows == _sampled(model, 130, None).rows
    assert {p: longer.rows[p] for p in short.rows} == dict(short.rows)
    assert _sampled(model, 10, path).rows == short.of_first(10).rows
    assert short.accepted == 1.0


def test_a_filter_leaves_holes_and_is_counted(model: Model) -> None:
    """A toy writes numbers only if it must; lists of three are refused half the time."""
    free = CARRIER.model_copy(
        update={
            "name": "numbers",
            "sampler": SAMPLER.model_copy(update={"allowed": "numbers"}),
        }
    )
    found = _sampled(model, 60, None, carrier=free)
    assert 0 < len(found.rows) < 60
    assert found.accepted is not None
    # Each prompt is drawn until it passes, six times at most.
    assert found.accepted > len(found.rows) / 360
    assert all(row.finish == "stop" for row in found.rows.values())


def test_controls_can_be_written_by_the_carrier(model: Model) -> None:
    base = _sampled(model, 30, None)
    for control in ("within", "across", "uniform"):
        made = control_pool(model, base, control, carrier=CARRIER, seed=0)
        assert sorted(made.rows) == list(range(30))
        assert all(row.completion_ids is None for row in made.rows.values())
        assert not any(row.provenance for row in made.rows.values())
        assert all(made.rows[p].messages == base.rows[p].messages for p in made.rows)


def test_foreign_rows_are_text_that_this_carrier_can_write(model: Model) -> None:
    prompt = (Message("user", "Go on"),)
    rows = {
        0: Row(prompt, "1, 2", (5, 6), "stop"),
        1: Row(prompt, "one, two", (5,), "stop"),
        2: Row(prompt, "1, 2, 3, 4", (5,), "stop"),  # the carrier ends at three
    }
    found = foreign_pool(model, Pool(rows, 0.5), carrier=CARRIER)
    assert list(found.rows) == [0]
    assert found.rows[0].completion_ids is None
    assert found.accepted == 0.5
