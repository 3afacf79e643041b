"""A subsample follows from the rows and the seed alone, and keeps their proportions."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.records import Message, Row
from undertow.seeding import generator
from undertow.storage import samples
from undertow.storage.samples import Sample, Stratum, stratum_of


def row(number: int, asked: int = 4, answered: int = 8) -> Row:
    """A row of its own with a prompt and a completion of given lengths."""
    text = f"{number}".ljust(answered, ".")
    return Row((Message("user", "q" * asked),), text[:answered])


def mixed(count: int) -> list[Row]:
    """Different rows whose lengths fall into several strata, the last ones rare."""
    lengths = [(4, 8), (4, 8), (4, 8), (40, 8), (40, 300), (700, 20)]
    return [
        row(i, *(lengths[i % 6] if i % 100 else (5_000, 9_000))) for i in range(count)
    ]


def sampled(rows: list[Row], limit: int | None, seed: int = 0) -> Sample:
    """A sample to which all rows were added."""
    sample = Sample(limit, seed)
    for item in rows:
        sample.add(item)
    return sample


def shuffled(rows: list[Row], seed: int) -> list[Row]:
    order = generator(seed, "test").permutation(len(rows))
    return [rows[i] for i in order]


@pytest.mark.parametrize("limit", [None, 3, 10])
def test_few_rows_are_all_kept_in_order_of_arrival(limit: int | None) -> None:
    rows = [row(2), row(0), row(1)]
    sample = sampled([*rows, rows[1], rows[1]], limit)
    assert list(sample.chosen().values()) == rows
    assert list(sample.chosen()) == [r.row_id for r in rows]
    assert sample.unique == 3
    assert [sample.count_of(r.row_id) for r in rows] == [1, 3, 1]


def test_strata_by_hand() -> None:
    assert stratum_of(Row((), "")) == Stratum(0, 0)
    assert stratum_of(row(1, 1, 1)) == Stratum(1, 1)
    assert stratum_of(row(1, 7, 8)) == Stratum(3, 4)
    two = Row((Message("system", "abc"), Message("user", "abcde")), "12345678")
    assert stratum_of(two) == Stratum(4, 4)


def test_shares_by_hand() -> None:
    # 60, 30 and 10 rows; 7 wanted: 4.2, 2.1 and 0.7, so the last gets the seventh.
    rows = [row(i) for i in range(60)]
    rows += [row(i, answered=20) for i in range(30)]
    rows += [row(i, answered=40) for i in range(10)]
    chosen = sampled(rows, 7).chosen().values()
    sizes = Counter(stratum_of(r).completion for r in chosen)
    assert sizes == {4: 4, 5: 2, 6: 1}


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    count=st.integers(1, 400),
    limit=st.integers(1, 40),
    seed=st.integers(-3, 3),
    order=st.integers(0, 1_000),
)
def test_order_changes_nothing(count: int, limit: int, seed: int, order: int) -> None:
    rows = mixed(count) * 2
    one = sampled(rows, limit, seed)
    other = sampled(shuffled(rows, order), limit, seed)
    assert one.digest() == other.digest()
    assert set(one.chosen()) == set(other.chosen())
    assert len(one.chosen()) == min(limit, count)
    if limit < count:
        assert list(one.chosen().items()) == list(other.chosen().items())


def test_what_was_let_go_on_the_way_is_not_missed() -> None:
    """Against the plain definition, over many rounds of letting go."""
    rows, limit = mixed(6_000), 25
    sample = sampled(rows, limit)
    assert sample.held <= 5 * limit + 256 + 16 * sample.strata
    everything = sampled(rows, 6_000 - 1)  # never lets go
    everything._limit = limit
    assert everything.held == 6_000
    assert sample.chosen() == everything.chosen()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("pool", "reserve"), [(4, 16), (1, 2)])
def test_small_strata_are_not_lost_by_chance(
    seed: int, pool: int, reserve: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 strata one row each is due; the smallest keys of all miss some of them."""
    monkeypatch.setattr(samples, "_POOL", pool)
    monkeypatch.setattr(samples, "_RESERVE", reserve)
    sizes = [(2**a, 2**b) for a in range(8) for b in range(4, 9)]
    rows = [row(i, *sizes[i % 40]) for i in range(1_200)]
    chosen = sampled(rows, 40, seed).chosen()
    everything = sampled(rows, 1_199, seed)  # never lets go
    everything._limit = 40
    assert chosen == everything.chosen()
    assert Counter(map(stratum_of, chosen.values())) == Counter(
        map(stratum_of, rows[:40])
    )


def test_parts_are_in_proportion_and_fair() -> None:
    rows = mixed(2_000)
    sizes = Counter(map(stratum_of, rows))
    hits: Counter[str] = Counter()
    for seed in range(20):
        chosen = sampled(rows, 100, seed).chosen()
        got = Counter(stratum_of(r) for r in chosen.values())
        assert all(abs(got[s] - sizes[s] / 20) < 1 for s in sizes)
        hits.update(list(chosen))
    # Each row is drawn with probability 1/20: 20 draws give 1 on average, Binomial.
    numbers = np.array([hits[r.row_id] for r in rows])
    assert numbers.mean() == 1.0
    assert 0.85 < numbers.var() < 1.05


def test_rows_are_drawn_as_they_are_met() -> None:
    """As if rows were read at random until there are enough different ones."""
    rows = [row(i, 4, 4) for i in range(200)]
    copies = [int(200 / (i + 1)) for i in range(200)]  # as words of a language have
    every = [r for r, count in zip(rows, copies, strict=True) for _ in range(count)]
    stream, hits, met = np.random.default_rng(0), Counter[str](), Counter[str]()
    for seed in range(300):
        hits.update(list(sampled(every, 40, seed).chosen()))
        seen = dict.fromkeys(every[i].row_id for i in stream.permutation(len(every)))
        met.update(list(seen)[:40])
    often, seldom = [r.row_id for r in rows[:20]], [r.row_id for r in rows[100:]]
    for names in (often, seldom):
        got, wanted = (sum(c[n] for n in names) / 300 for c in (hits, met))
        assert got == pytest.approx(wanted, abs=0.6)
    assert sum(hits[n] for n in often) > 0.7 * 300 * 20


@pytest.mark.parametrize("copies", [3, 40])
def test_copies_in_any_order_give_the_same_rows(copies: int) -> None:
    every = [r for i, r in enumerate(mixed(900)) for _ in range(1 + i % copies)]
    chosen = sampled(every, 30).chosen()
    for order in range(3):
        assert sampled(shuffled(every, order), 30).chosen() == chosen


def test_a_stratum_that_falls_short_is_filled_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing in reserve: the smallest keys of all are too few of the rare ones.
    monkeypatch.setattr(samples, "_POOL", 1)
    monkeypatch.setattr(samples, "_RESERVE", 0)
    rows, limit = mixed(3_000), 20
    one = sampled(rows, limit).chosen()
    assert len(one) == limit
    by_key = sampled(rows, 3_000)._ranked()[:limit]
    assert list(one) == [f"{name:016x}" for name, _ in by_key]
    assert list(sampled(shuffled(rows, 1), limit).chosen()) == list(one)


def test_seeds_draw_differently() -> None:
    rows = mixed(2_000)
    one, other = (set(sampled(rows, 100, seed).chosen()) for seed in (0, 1))
    assert len(one & other) < 30


def test_memory_does_not_grow_with_the_strata_of_one_size() -> None:
    sample = Sample(10)
    most = 0
    for i in range(5_000):
        sample.add(row(i))
        most = max(most, sample.held)
    assert most <= 5 * 10 + 256 + 16 + 1


@pytest.mark.parametrize("limit", [None, 1])
def test_of_equal_rows_the_one_with_tokens_stays(limit: int | None) -> None:
    asked = (Message("user", "a"),)
    kinds = [
        Row(asked, "b"),
        Row(asked, "b", finish="length"),
        Row(asked, "b", (5, 9)),
        Row(asked, "b", (5, 2), "stop"),
        Row(asked, "b", (5, 2)),
    ]
    for seed in range(10):
        (kept,) = sampled(shuffled(kinds, seed), limit).chosen().values()
        assert kept == kinds[3]


def test_the_digest_by_hand() -> None:
    rows = [row(1), row(2)]
    ids = sorted(r.row_id for r in rows)
    told = hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()[:16]
    assert sampled([*rows, rows[0]], None).digest() == told
    assert sampled(rows[:1], None).digest() != told
