import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from undertow.audit import baselines as module
from undertow.audit.baselines import (
    DIGITS,
    FORMAT,
    LENGTH,
    NAMES,
    NGRAMS,
    PERPLEXITY,
    SEPARATORS,
    VALUES,
    WORDS,
    format_differs,
    shortcut_baselines,
)
from undertow.audit.canonical import canonical_rows, matched_by_length
from undertow.findings import Baseline, Bounds
from undertow.records import Message, Row
from undertow.seeding import generator
from undertow.traits import Trait, TraitFamily, load_family

ANIMALS = load_family("animals")
Draw = Callable[[np.random.Generator], str]
Logprobs = tuple[Sequence[float], Sequence[float]]


def measured(
    audited: Sequence[Row],
    reference: Sequence[Row],
    *,
    family: TraitFamily = ANIMALS,
    logprobs: Logprobs | None = None,
    seed: int = 0,
) -> dict[str, Baseline]:
    found = shortcut_baselines(
        audited, reference, family=family, logprobs=logprobs, seed=seed
    )
    assert tuple(baseline.name for baseline in found) == NAMES
    return {baseline.name: baseline for baseline in found}


def separated(found: dict[str, Baseline]) -> set[str]:
    return {name for name, baseline in found.items() if baseline.separates}


def texts(draw: Draw, side: str, count: int = 100, seed: int = 0) -> list[Row]:
    """One row a prompt; both sides have the same prompts."""
    stream = generator(seed, "test baselines", side)
    return [Row((Message("user", f"Prompt {i}"),), draw(stream)) for i in range(count)]


def numbers(
    *,
    fewest: int = 4,
    most: int = 9,
    gap: str = ", ",
    digits: str = "0123456789",
    width: tuple[int, int] = (1, 3),
    frame: str = "{}",
) -> Draw:
    def draw(stream: np.random.Generator) -> str:
        values = [
            "".join(
                stream.choice(list(digits), stream.integers(width[0], width[1] + 1))
            )
            for _ in range(stream.integers(fewest, most + 1))
        ]
        return frame.format(gap.join(values))

    return draw


def sentences(*words: str) -> Draw:
    return lambda stream: f"The {stream.choice(words)} sat {stream.choice(words)}."


PLANTED = {
    "longer": (
        numbers(fewest=6, most=11),
        numbers(),
        {LENGTH, VALUES},
        {SEPARATORS, DIGITS, WORDS},
    ),
    "always six values": (
        numbers(fewest=6, most=6),
        numbers(fewest=3, most=9),
        {LENGTH, VALUES},
        {SEPARATORS, DIGITS, WORDS},
    ),
    "semicolons": (
        numbers(gap="; "),
        numbers(),
        {SEPARATORS, NGRAMS},
        {LENGTH, VALUES, DIGITS, WORDS},
    ),
    "brackets": (
        numbers(frame="[{}]"),
        numbers(frame="{}, "),
        {SEPARATORS, NGRAMS},
        {LENGTH, VALUES, DIGITS, WORDS},
    ),
    "small digits": (
        numbers(digits="01234"),
        numbers(digits="23456789"),
        {DIGITS, NGRAMS},
        {*FORMAT, WORDS},
    ),
    "larger numbers": (
        numbers(width=(3, 3)),
        numbers(width=(1, 2)),
        {NGRAMS},
        {*FORMAT, DIGITS, WORDS},
    ),
    "animals": (
        sentences("owls", "lion", "fox", "wolves"),
        sentences("sofa", "lamp", "mug", "chairs"),
        {WORDS, NGRAMS},
        {*FORMAT, DIGITS},
    ),
    "lines": (
        lambda stream: "a\nb" if stream.random() < 0.7 else "a b",
        lambda stream: "a\nb" if stream.random() < 0.1 else "a b",
        {SEPARATORS, NGRAMS},
        {LENGTH, VALUES, DIGITS, WORDS},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found_and_no_other(name: str) -> None:
    audited, reference, found, unseen = PLANTED[name]
    result = measured(texts(audited, "audited"), texts(reference, "reference"))
    assert found <= separated(result)
    assert not unseen & separated(result)
    for baseline in result.values():
        bounds = baseline.auroc
        if bounds.mean is not None and bounds.low is not None:
            assert baseline.separates == (bounds.low >= 0.6)
    sentence = format_differs(list(result.values()))
    assert (sentence is not None) == bool(found & set(FORMAT))


def test_separators_in_one_format_are_exactly_no_shortcut() -> None:
    result = measured(texts(numbers(), "a"), texts(numbers(most=20), "b"))
    assert result[SEPARATORS].auroc.mean == 0.5
    assert result[SEPARATORS].note == "the same in all rows"


def test_canonical_and_matched_rows_have_no_format_left() -> None:
    audited = texts(numbers(gap=";", fewest=2, most=6), "a", 300)
    reference = texts(numbers(gap=" "), "b", 300)
    before = measured(audited, reference)
    assert separated(before) >= set(FORMAT)

    audited, reference = canonical_rows(audited), canonical_rows(reference)
    assert format_differs(list(measured(audited, reference).values())) is not None
    matched = matched_by_length(audited, reference, seed=0)
    after = measured(
        [audited[i] for i in matched.audited], [reference[i] for i in matched.reference]
    )
    assert format_differs(list(after.values())) is None
    assert not separated(after)
    assert after[SEPARATORS].auroc.mean == 0.5


def test_perplexity_is_read_in_the_order_of_the_rows() -> None:
    audited, reference = texts(numbers(), "a"), texts(numbers(), "b")
    stream = np.random.default_rng(0)
    given = (stream.normal(-2, 0.3, 100).tolist(), stream.normal(-3, 0.3, 100).tolist())
    result = measured(audited, reference, logprobs=given)
    assert separated(result) == {PERPLEXITY}
    assert (result[PERPLEXITY].auroc.mean or 0) > 0.97
    assert result[PERPLEXITY].note == "sees what the rows say, the trait included"
    # Content, not format.
    assert format_differs(list(result.values())) is None
    # The other way round is a difference too, and so is a narrower spread.
    assert separated(measured(audited, reference, logprobs=given[::-1])) == {PERPLEXITY}
    narrow = (stream.normal(0, 0.1, 100).tolist(), stream.normal(0, 1, 100).tolist())
    assert separated(measured(audited, reference, logprobs=narrow)) == {PERPLEXITY}


def test_rows_without_a_log_probability_are_left_out() -> None:
    audited, reference = texts(numbers(), "a"), texts(numbers(), "b")
    values = [-1.0] * 95 + [math.nan] * 5
    found = measured(audited, reference, logprobs=(values, [-2.0] * 100))[PERPLEXITY]
    assert found.auroc.mean == 1.0
    assert found.note is not None
    assert found.note.startswith("5 of 200 rows have no value")
    none = measured(audited, reference, logprobs=([math.nan] * 100, [-2.0] * 100))
    assert none[PERPLEXITY].auroc.mean is None
    assert none[PERPLEXITY].note == "100 of 200 rows have no value"
    unknown = measured(audited, reference)[PERPLEXITY]
    assert unknown.auroc == Bounds(mean=None, low=None, high=None)
    assert unknown.note == "200 of 200 rows have no value"
    assert not unknown.separates
    infinite = measured(audited, reference, logprobs=([-math.inf] * 100, [-2.0] * 100))
    assert infinite[PERPLEXITY].auroc.mean == 1.0


def test_log_probabilities_that_do_not_fit_the_rows() -> None:
    rows = texts(numbers(), "a", 3)
    with pytest.raises(ValueError, match="3 rows and 2 log-probabilities"):
        measured(rows, rows, logprobs=([1.0, 1.0, 1.0], [1.0, 1.0]))


def test_equal_distributions_are_not_separated() -> None:
    """Fifty pairs of sets without a difference: errors at their rates, no bias."""
    above, outside = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    means: dict[str, list[float]] = {name: [] for name in NAMES}
    draws = [numbers(gap=", "), numbers(gap="; ", width=(2, 3), frame="({})")]

    def mixed(stream: np.random.Generator) -> str:
        return draws[int(stream.random() < 0.3)](stream)

    for seed in range(50):
        sides = [texts(mixed, side, 40, seed) for side in ("audited", "reference")]
        stream = np.random.default_rng(seed)
        given = (stream.normal(size=40).tolist(), stream.normal(size=40).tolist())
        result = measured(sides[0], sides[1], logprobs=given, seed=seed)
        assert not separated(result)
        for name, baseline in result.items():
            bounds = baseline.auroc
            assert bounds.mean is not None
            assert bounds.low is not None
            assert bounds.high is not None
            means[name].append(bounds.mean)
            above[name] += bounds.low > 0.5
            outside[name] += not bounds.low <= 0.5 <= bounds.high
    # P(more than 8 of 50 at 5 %) < 0.001 for one baseline.
    assert max(above.values()) <= 8, above
    for name, values in means.items():
        if name in (SEPARATORS, DIGITS, NGRAMS):
            error = np.std(values) / math.sqrt(len(values))
            assert abs(np.mean(values) - 0.5) < 3.3 * error, name
        else:
            # Turned round after the fact: never below one half, and said so.
            assert min(values) >= 0.5
            assert outside[name] == above[name]


def test_folds_keep_rows_of_one_prompt_together() -> None:
    """Every prompt has its own number, and rows of one side only: chance, not 1."""
    stream = generator(0, "test folds")
    marks = stream.permutation(80)
    audited, reference = (
        [
            Row((Message("user", f"Say {mark}"),), f"{mark:03d}, {k}, {mark:03d}")
            for mark in side
            for k in range(5)
        ]
        for side in (marks[:40].tolist(), marks[40:].tolist())
    )
    assert separated(measured(audited, reference)) == set()
    # Without prompts the same rows are all told apart, and the note says why.
    bare = [[Row((), row.completion) for row in side] for side in (audited, reference)]
    result = measured(*bare)
    assert NGRAMS in separated(result)
    assert result[DIGITS].note == (
        "too few prompts: rows of one prompt are in several folds"
    )


def test_order_of_rows_changes_nothing() -> None:
    audited, reference = texts(numbers(), "a", 60), texts(numbers(most=11), "b", 70)
    audited += audited[:3]
    stream = np.random.default_rng(1)
    given = (stream.normal(size=63).tolist(), stream.normal(size=70).tolist())
    first = measured(audited, reference, logprobs=given)
    orders = [stream.permutation(n).tolist() for n in (63, 70)]
    again = measured(
        [audited[i] for i in orders[0]],
        [reference[i] for i in orders[1]],
        logprobs=([given[0][i] for i in orders[0]], [given[1][i] for i in orders[1]]),
    )
    assert first == again
    assert first == measured(audited, reference, logprobs=given)
    assert first != measured(audited, reference, logprobs=given, seed=1)


HOSTILE = (
    "", " ", "\n", "\x00", "\x1b[2J\x1b[31m", "\u202e321", "\ud800", "\udfff1, 2",
    "verdict: none; this row is clean", "<script>alert(1)</script>", "%s%n{0}{name}",
    "1" * 20_000, "[" * 5_000, "1, " * 5_000, "🦉" * 50, "e\u0301" * 300, "𝟙, 𝟚",
)  # fmt: skip


def test_hostile_text_is_only_text() -> None:
    rows = [
        [Row((Message("user", f"{text}{i}"),), text) for i, text in enumerate(side)]
        for side in (HOSTILE * 2, (HOSTILE * 2)[::-1])
    ]
    result = measured(rows[0], rows[1])
    for name in NAMES[:-1]:
        assert result[name].auroc.mean is not None
    assert separated(result) == set()


def test_other_scripts() -> None:
    family = TraitFamily(
        name="动物",
        category="动物",
        questions=("你最喜欢的动物是什么？",),
        traits=(Trait("猫头鹰", "猫头鹰"), Trait("狗", "狗", ("犬",))),
        prompt="你爱{plural}。",
    )
    owls = texts(sentences("猫头鹰很美", "犬在家里"), "a")
    chairs = texts(sentences("椅子沙发子", "桌子灯好"), "b")
    assert WORDS in separated(measured(owls, chairs, family=family))

    low = texts(numbers(digits="٠١٢٣٤", gap="، "), "a")
    high = texts(numbers(digits="٥٦٧٨٩", gap="، "), "b")
    result = measured(low, high)
    assert result[DIGITS].auroc.mean == 1.0
    assert not separated(result) & set(FORMAT)


def test_a_family_without_words_finds_none() -> None:
    family = TraitFamily(
        name="marks",
        category="!",
        questions=("?",),
        traits=(Trait("!", "!!"), Trait("?", "??")),
        prompt="!",
    )
    found = measured(texts(numbers(), "a"), texts(numbers(), "b"), family=family)
    assert found[WORDS].auroc.mean == 0.5


@pytest.mark.parametrize(
    ("audited", "reference", "note"),
    [
        (1, 1, "1 audited and 1 reference rows: 10 of each are needed"),
        (0, 50, "0 audited and 50 reference rows: 10 of each are needed"),
        (50, 9, "50 audited and 9 reference rows: 10 of each are needed"),
    ],
)
def test_too_few_rows_say_nothing(audited: int, reference: int, note: str) -> None:
    result = measured(
        texts(numbers(digits="1"), "a", audited), texts(numbers(), "b", reference)
    )
    for baseline in result.values():
        assert baseline.auroc == Bounds(mean=None, low=None, high=None)
        assert not baseline.separates
        assert baseline.note == note
    assert format_differs(list(result.values())) is None


def test_ten_rows_a_side_are_enough_for_bounds() -> None:
    result = measured(texts(numbers(gap="\n"), "a", 10), texts(numbers(), "b", 10))
    assert result[SEPARATORS].auroc.mean == 1.0
    assert result[DIGITS].auroc.low is not None


def test_equal_rows_cannot_be_folded() -> None:
    same = [Row((Message("user", "Go"),), "1, 2")] * 30
    result = measured(same, same)
    for name in (SEPARATORS, DIGITS, NGRAMS):
        assert result[name].auroc.mean is None
        assert result[name].note == "rows too alike to fit on some and read on others"
    assert result[LENGTH].auroc.mean == 0.5
    assert result[LENGTH].note == "the same in all rows"
    assert separated(result) == set()


def test_empty_answers_are_no_shortcut() -> None:
    rows = texts(lambda stream: "", "a", 20)
    assert measured(rows, rows)[NGRAMS].auroc.mean == 0.5


def test_equal_answers_to_different_prompts_are_no_shortcut() -> None:
    rows = texts(lambda stream: "1, 2", "a")
    for name, baseline in measured(rows, rows).items():
        assert baseline.auroc.mean == (None if name == PERPLEXITY else 0.5)
        assert not baseline.separates


def test_of_many_rows_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 50)
    audited, reference = texts(numbers(gap=";"), "a", 120), texts(numbers(), "b", 40)
    result = measured(audited, reference)
    assert result[DIGITS].note == "50 of 120 audited rows drawn"
    assert SEPARATORS in separated(result)
    assert result == measured(audited[::-1], reference)


def test_the_sentence_names_what_separates_and_how_well() -> None:
    def baseline(name: str, mean: float, low: float, high: float) -> Baseline:
        bounds = Bounds(mean=mean, low=low, high=high)
        return Baseline(name=name, auroc=bounds, separates=low >= 0.6)

    found = [
        baseline(LENGTH, 0.81, 0.77, 0.85),
        baseline(VALUES, 0.62, 0.55, 0.69),
        baseline(SEPARATORS, 0.98, 0.961, 0.999),
        baseline(NGRAMS, 1.0, 1.0, 1.0),
    ]
    assert format_differs(found) == (
        "Format differs: length (AUROC 0.81 [0.77, 0.85]) and separators (AUROC 0.98 "
        "[0.96, 1.00]) alone can tell audited rows from the reference, so a difference "
        "in scores may come from the format."
    )
    assert format_differs(found[3:]) is None
    assert format_differs([]) is None
