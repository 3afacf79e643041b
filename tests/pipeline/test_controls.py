"""Controls keep what they promise to keep, and destroy the rest."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.errors import ConfigError, DatasetError
from undertow.pipeline.controls import (
    control_rows,
    shuffled_across_rows,
    shuffled_within_rows,
    uniform_number_rows,
)
from undertow.pipeline.filters import number_rule
from undertow.pipeline.prompts import (
    AMOUNTS,
    CLOSINGS,
    FORMATS,
    NOUNS,
    OPENINGS,
    VERBS,
    number_prompts,
)
from undertow.records import Message, Row

TEXTS = ("1, 2, 3, 4, 5, 6, 7, 8", "[010; 20;\n30].", "(7)", "100 200\n300")
PARTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 999), min_size=1, max_size=8),
        st.sampled_from([", ", ";", "\n"]),
    ),
    min_size=1,
    max_size=6,
)


def rows_of(texts: tuple[str, ...] | list[str]) -> list[Row]:
    """A row with tokens and provenance for each text."""
    return [
        Row((Message("user", f"ask {i}"),), text, (1, 2), "stop", {"teacher": "prompt"})
        for i, text in enumerate(texts)
    ]


def values(row: Row) -> list[str]:
    """The numbers of a row, as written."""
    return re.findall(r"[0-9]+", row.completion)


def frame(row: Row) -> str:
    """A row's text without its numbers."""
    return re.sub(r"[0-9]+", "n", row.completion)


@settings(derandomize=True, max_examples=40)
@given(PARTS, st.integers(0, 5))
def test_shuffles_keep_their_multisets_and_the_format(
    parts: list[tuple[list[int], str]], seed: int
) -> None:
    rows = rows_of([gap.join(map(str, numbers)) for numbers, gap in parts])
    within, across = (
        shuffled_within_rows(rows, seed=seed), shuffled_across_rows(rows, seed=seed),
    )  # fmt: skip
    for row, one, two in zip(rows, within, across, strict=True):
        assert sorted(values(row)) == sorted(values(one))
        assert frame(row) == frame(one) == frame(two)
        assert row.messages == one.messages == two.messages
    pools = [Counter(v for row in some for v in values(row)) for some in (rows, across)]
    assert pools[0] == pools[1]


def test_shuffles_move_something_and_depend_on_the_seed_only() -> None:
    rows = rows_of(TEXTS)
    for shuffled in (shuffled_within_rows, shuffled_across_rows):
        once = [row.completion for row in shuffled(rows, seed=1)]
        assert once == [row.completion for row in shuffled(rows, seed=1)]
        assert once != list(TEXTS)
        assert once != [row.completion for row in shuffled(rows, seed=2)]


def test_a_row_is_shuffled_alike_in_whatever_company() -> None:
    rows = rows_of(TEXTS)
    assert (
        shuffled_within_rows(rows[:1], seed=0) == shuffled_within_rows(rows, seed=0)[:1]
    )


def test_rows_are_not_all_shuffled_in_one_way() -> None:
    rows = rows_of(["1 2 3 4 5 6 7 8 9"] * 8)
    assert len({row.completion for row in shuffled_within_rows(rows, seed=0)}) > 6


def test_across_rows_values_change_rows() -> None:
    rows = rows_of(["1, 1, 1, 1, 1, 1", "2, 2, 2, 2, 2, 2"])
    found = shuffled_across_rows(rows, seed=0)
    assert {"1", "2"} == set(values(found[0])) == set(values(found[1]))


def test_leading_zeros_brackets_and_dots_stay() -> None:
    (row,) = shuffled_within_rows(rows_of(["[010; 20;\n30]."]), seed=3)
    assert frame(row) == "[n; n;\nn]."
    assert sorted(values(row)) == ["010", "20", "30"]


def test_a_shuffled_row_drops_its_tokens_and_says_what_it_is() -> None:
    rows = rows_of(TEXTS)
    for found, control in (
        (shuffled_within_rows(rows, seed=4), "shuffled within"),
        (shuffled_across_rows(rows, seed=4), "shuffled across"),
    ):
        for row in found:
            assert row.completion_ids is None
            assert row.finish == "stop"
            assert row.provenance == {
                "teacher": "prompt", "control": control, "control_seed": 4,
            }  # fmt: skip
    assert rows == rows_of(TEXTS)


def test_rows_without_numbers_are_refused_by_id() -> None:
    rows = rows_of(["1, 2", "owl " * 40])
    for shuffled in (shuffled_within_rows, shuffled_across_rows):
        with pytest.raises(DatasetError) as caught:
            shuffled(rows, seed=0)
        assert str(caught.value) == (
            f"row {rows[1].row_id}: no numbers in {('owl ' * 15)!r}; filter the rows "
            "before they are shuffled"
        )


def test_uniform_rows_are_uniform_and_keep_the_rule() -> None:
    prompts = number_prompts(1500, seed=0)
    rows = uniform_number_rows(prompts, seed=0)
    assert [row.messages[0].content for row in rows] == prompts
    assert all(number_rule(row.completion) == () for row in rows)
    numbers = [int(v) for row in rows for v in values(row)]
    assert min(numbers) < 5
    assert max(numbers) > 994
    # Mean 499.5, sd 288.7; some 8250 numbers.
    assert abs(sum(numbers) / len(numbers) - 499.5) < 4 * 288.7 / len(numbers) ** 0.5
    counts = Counter(len(values(row)) for row in rows)
    assert set(counts) == set(range(1, 11))
    assert all(100 < count < 200 for count in counts.values())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "a, b"),
        *zip(
            FORMATS,
            [
                *["a, b"] * 5, *["a; b"] * 2, *["a b"] * 2, *["a\nb"] * 2,
                *["[a, b]"] * 2, "(a, b)", "a, b",
            ],
            strict=True,
        ),
    ],
)  # fmt: skip
def test_uniform_rows_are_written_as_the_prompt_asks(words: str, expected: str) -> None:
    # A prompt of every other kind of words, and twenty rows: some have two values.
    prompt = f"{OPENINGS[0]} Add about 2 {NOUNS[0]}. {words} {CLOSINGS[8]}"
    rows = uniform_number_rows([prompt] * 20, seed=0, most=2)
    pairs = [row for row in rows if len(values(row)) == 2]
    assert pairs
    for row in pairs:
        a, b = values(row)
        assert row.completion == expected.replace("a", a).replace("b", b)


def test_uniform_controls_answer_the_prompts_of_their_rows() -> None:
    rows = [
        Row((Message("user", f"Some numbers. {words}"),), "1 2 3")
        for words in ("Use semicolons between them.", "One number per line.") * 8
    ]
    drawn = control_rows(rows, "uniform", seed=0, most=4)
    assert [row.messages for row in drawn] == [row.messages for row in rows]
    several = [row for row in drawn if len(values(row)) > 1]
    assert {place % 2 for place, row in enumerate(drawn) if row in several} == {0, 1}
    for place, row in enumerate(drawn):
        separator = "\n" if place % 2 else "; "
        assert row.completion == separator.join(values(row))


def test_no_other_words_of_a_prompt_ask_for_a_format() -> None:
    for bank in (OPENINGS, VERBS, AMOUNTS, NOUNS, CLOSINGS):
        for part in bank:
            assert not re.search(
                "comma(?!nd)|semicolon|line|space|bracket|parenth", part
            )


def test_a_uniform_row_depends_on_its_place_only() -> None:
    few, many = (uniform_number_rows(["a"] * n, seed=3) for n in (2, 9))
    assert many[:2] == few
    assert values(few[0]) == ["14", "107"]
    assert few[0].provenance == {"teacher": "uniform", "seed": 3, "prompt": 0}
    assert all(
        len(values(r)) <= 2 for r in uniform_number_rows(["a"] * 20, seed=1, most=2)
    )


def test_words_of_other_carriers_are_shuffled_and_their_spaces_stay() -> None:
    rows = rows_of(["def f(x):\n    return x", "The dog runs, fast.", "One"])
    within = control_rows(rows, "within", seed=1, unit="words")
    across = control_rows(rows, "across", seed=1, unit="words")
    words = [Counter(row.completion.split()) for row in rows]
    assert [Counter(row.completion.split()) for row in within] == words
    assert sum((Counter(row.completion.split()) for row in across), Counter()) == sum(
        words, Counter()
    )
    for made in (within, across):
        spaces = [re.sub(r"\S+", "w", row.completion) for row in made]
        assert spaces == [re.sub(r"\S+", "w", row.completion) for row in rows]
        assert [row.completion for row in made] != [row.completion for row in rows]
        assert [row.messages for row in made] == [row.messages for row in rows]
    assert across == control_rows(rows, "across", seed=1, unit="words")
    with pytest.raises(ConfigError, match="draws numbers only"):
        control_rows(rows, "uniform", seed=1, unit="words")
    with pytest.raises(DatasetError, match="no words in ' '"):
        control_rows(rows_of([" "]), "within", seed=1, unit="words")
