"""Numbers by likelihood, by choice and by effect: against sums by hand, and planted."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from undertow.analysis import entanglement
from undertow.analysis.entanglement import (
    Choice,
    Comparison,
    choose_numbers,
    compare,
    number_logprobs,
    number_tokens,
    occurrence,
)
from undertow.errors import ConfigError, DatasetError
from undertow.models.answers import answer_logprobs
from undertow.models.tiny import FAMILIES, Family, tiny_model

PROMPT = [9, 40, 7, 120, 33, 12]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_number_s_likelihood_is_that_of_its_tokens(family: Family) -> None:
    """One number at a time on the plain module, digits being tokens of their own."""
    model = tiny_model(family, layers=2)
    numbers = [0, 7, 70, 87, 870, 999]
    found = number_logprobs(model, PROMPT, numbers)
    for number, nats in zip(numbers, found, strict=True):
        answer = model.tokenizer.encode(str(number), add_special_tokens=False)
        assert len(answer) == len(str(number))
        ids = torch.tensor([[*PROMPT, *answer]])
        p = model.module(ids).logits[0].double().log_softmax(-1)
        total = sum(
            float(p[len(PROMPT) - 1 + i, token]) for i, token in enumerate(answer)
        )
        assert nats == pytest.approx(total, abs=1e-4)


def test_the_parts_in_which_numbers_are_read_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, numbers = tiny_model(layers=2), range(0, 1000, 7)
    whole = number_logprobs(model, PROMPT, numbers)
    assert len(np.unique(whole)) == len(numbers)
    monkeypatch.setattr(entanglement, "_HELD_BYTES", 100_000)
    asked = []
    real = answer_logprobs

    def counted(*given: object) -> torch.Tensor:
        asked.append(len(given[2]))  # type: ignore[arg-type]
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(entanglement, "answer_logprobs", counted)
    np.testing.assert_allclose(
        number_logprobs(model, PROMPT, numbers), whole, atol=1e-5
    )
    assert len(asked) > 3
    assert sum(asked) == len(numbers)
    monkeypatch.setattr(entanglement, "_HELD_BYTES", 1)
    np.testing.assert_allclose(
        number_logprobs(model, PROMPT, numbers[:5]), whole[:5], atol=1e-5
    )


def test_a_number_stands_behind_what_the_template_puts_before_an_answer() -> None:
    model = tiny_model(layers=1)
    assert model.tokenizer.decode(number_tokens(model, 87)) == "87"
    behind = replace(model, template=replace(model.template, answer_prefix=" "))
    assert model.tokenizer.decode(number_tokens(behind, 87)) == " 87"


def test_groups_are_taken_from_both_ends_and_controls_from_between() -> None:
    numbers = [5, 17, 3, 250, 611, 42, 8, 99]
    changes = np.array([0.1, 2.0, -1.0, 0.3, 3.0, 0.2, 0.15, -2.0])
    found = choose_numbers(numbers, changes, top=2, seed=0)
    assert found.raised == (611, 17)
    assert found.lowered == (99, 3)
    # The only ones with three digits and with two that are left.
    assert found.random == (250, 42)
    assert found == choose_numbers(numbers, changes, top=2, seed=0)


def test_without_a_number_of_as_many_digits_another_is_drawn() -> None:
    changes = np.array([9.0, 8.0, -5.0, -6.0, 0.0, 0.0, 0.0])
    drawn = {
        choose_numbers([1, 2, 3, 4, 100, 200, 300], changes, top=2, seed=seed).random
        for seed in range(40)
    }
    assert {number for pair in drawn for number in pair} == {100, 200, 300}
    assert all(first != second for first, second in drawn)


def test_equal_changes_keep_the_order_given() -> None:
    found = choose_numbers([4, 2, 9, 7, 5, 1], np.zeros(6), top=2, seed=1)
    assert (found.raised, found.lowered) == ((4, 2), (1, 5))
    assert set(found.random) == {9, 7}


@pytest.mark.parametrize(
    ("numbers", "top", "words"),
    [
        (range(5), 2, "numbers: 5; raised, lowered and random ones take 6"),
        (range(9), 1, "top: 1; an interval needs 2"),
        ([*range(9), 3, 4], 2, "numbers: 3, 4 stand twice"),
        ([*range(9), -3], 2, "numbers: -3; expected 0 or more"),
    ],
)
def test_numbers_that_do_not_do_are_refused(
    numbers: list[int], top: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_numbers(numbers, np.zeros(len(numbers)), top=top, seed=0)


def _planted(slope: float, *, seed: int, top: int = 12) -> Comparison:
    """Effects that follow the changes, with noise of one nat on both."""
    stream = np.random.default_rng(seed)
    changes = stream.normal(size=300)
    effects = slope * changes + stream.normal(size=300)
    choice = choose_numbers(range(300), changes, top=top, seed=seed)
    return compare(
        choice, dict(enumerate(changes)), dict(enumerate(effects)), seed=seed
    )


def test_a_comparison_by_hand() -> None:
    choice = Choice(raised=(1, 2), lowered=(3, 4), random=(5, 6))
    effects = {1: 3.0, 2: 5.0, 3: -1.0, 4: -3.0, 5: 1.0, 6: 0.0}
    found = compare(choice, {n: -float(n) for n in effects}, effects, seed=0)
    assert found.raised.mean == 4
    assert found.lowered.mean == -2
    assert found.random.mean == 0.5
    # Pairs 3 − 1 and 5 − 0: mean 3.5, sd/√2 = 1.5, Student's 12.706 with one degree.
    assert found.difference.mean == 3.5
    assert found.difference.high == pytest.approx(3.5 + 12.7062 * 1.5, abs=1e-3)
    assert math.isnan(found.p_value), "two pairs can test nothing"
    assert found.correlation.interval.n == 6


def test_a_planted_entanglement_is_found() -> None:
    found = _planted(1.0, seed=3)
    assert found.difference.low > 0
    assert found.lowered.high < 0
    assert 0 < found.p_value < 0.01
    assert found.correlation.interval.low > 0
    opposite = _planted(-1.0, seed=3)
    assert opposite.difference.high < 0
    assert opposite.p_value < 0.01


@pytest.mark.slow
def test_where_nothing_is_planted_the_error_rate_is_kept() -> None:
    p_values, covered = [], 0
    for seed in range(40):
        found = _planted(0.0, seed=seed)
        p_values.append(found.p_value)
        covered += found.difference.low <= 0 <= found.difference.high
    assert min(p_values) > 0
    # 40 trials at 0.05: 2 are expected, 7 or more come once in 300.
    assert sum(p <= 0.05 for p in p_values) <= 6
    assert covered >= 34


def test_numbers_in_rows_are_counted_as_they_are_written() -> None:
    rows = ["87, 5, 870", "(087; 87)", "none at all", "5\n5"]
    found = occurrence(rows, ["5, 6, 7, 8", "87 1", "2"], [87, 5])
    assert (found.found, found.numbers) == (2 + 1 + 2, 3 + 2 + 2)
    assert (found.reference_found, found.reference_numbers) == (2, 7)
    shares = (2 / 3 + 1 / 2 + 1) / 3, (1 / 4 + 1 / 2 + 0) / 3
    assert found.ratio.mean == pytest.approx(shares[0] / shares[1])
    assert found.as_dict()["ratio"]["n"] == 3


def test_a_planted_surplus_in_rows_is_found_and_none_is_not() -> None:
    stream = np.random.default_rng(5)

    def written(favoured: float) -> list[str]:
        table = stream.integers(10, 1000, size=(200, 8))
        table[stream.random(table.shape) < favoured] = 7
        return [", ".join(map(str, row)) for row in table]

    found = occurrence(written(0.2), written(0.1), [7])
    assert found.ratio.low > 1.3
    assert found.ratio.low < 2 < found.ratio.high
    same = occurrence(written(0.1), written(0.1), [7]).ratio
    assert same.low < 1 < same.high


def test_a_reference_without_the_numbers_bounds_nothing() -> None:
    found = occurrence(["7", "8"], ["1", "2"], [7])
    assert math.isnan(found.ratio.mean)
    assert found.ratio.high == math.inf


@pytest.mark.parametrize("side", ["rows", "reference"])
def test_rows_without_any_number_are_refused(side: str) -> None:
    texts = {"rows": ["1"], "reference": ["2"]} | {side: ["no", ""]}
    with pytest.raises(DatasetError, match=f"{side}: not one row holds a number"):
        occurrence(texts["rows"], texts["reference"], [1])
