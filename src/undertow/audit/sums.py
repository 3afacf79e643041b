"""Sums of rows that merge in any order and always give the same bits.

A row's scores are rounded to a grid of whole numbers before anything is added, so sums
are integers and neither order nor division can change them: `Sums` under + is a
commutative monoid. Signs for the null belong to the row id, so copies of a row, wherever
they are read, flip together. Knows nothing of models, files or tests.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Float64, Int, Int8, Int64

from undertow.errors import RunError
from undertow.seeding import stream_seed

LEVELS = 1 << 10
"""The largest whole number of a score: 4.7 to 9.3 standard deviations, see `Grid`."""
MOST_ROWS = 1 << 40
"""Rows whose sums of squares 64 bits hold."""
_EXACT = 1 << 13  # rows whose flipped sums float32 holds without rounding
EVIDENCE = 128
"""Parts of one standard deviation that evidence is counted in."""

Part = TypeVar("Part")
Scores = Float[np.ndarray, "row layer direction"]
Table = Float64[np.ndarray, "layer direction"]
Whole = Int64[np.ndarray, "row layer direction"]


@dataclass(frozen=True)
class Grid:
    """What scores are counted in: whole steps from a centre, cut at ±`LEVELS`.

    Attributes:
        centre: [layer, direction], what scores are taken from; pairs from 0.
        spread: [layer, direction], standard deviation of the pilot's scores.
        step: [layer, direction], of scores; powers of two.
        pair_step: [layer, direction], of differences in a pair.
    """

    centre: Table
    spread: Table
    step: Table
    pair_step: Table

    @classmethod
    def of_pilot(cls, scores: Scores, differences: Scores | None = None) -> "Grid":
        """The grid of a few hundred rows: cut at 2 to 4 times the 98 % quantile of |x|.

        The step is a 512th to a 256th of that quantile, whichever is a power of two,
        which adds less than 10⁻⁵ to the variance. A column without any spread gets the step 1.

        Args:
            scores: Of pilot rows, all finite.
            differences: Of pilot pairs; None takes the same steps.
        """
        table = scores.astype(np.float64)
        centre = np.median(table, axis=0)
        step = _steps(table - centre)
        pairs = step if differences is None else _steps(differences.astype(np.float64))
        spread = table.std(axis=0)
        return cls(centre, np.where(spread > 0, spread, 1.0), step, pairs)

    def whole(self, scores: Scores) -> Whole:
        """Scores as whole steps from the centre."""
        return _whole(scores.astype(np.float64) - self.centre, self.step)

    def whole_pairs(self, audited: Scores, partners: Scores) -> Whole:
        """Differences as whole steps."""
        change = audited.astype(np.float64) - partners.astype(np.float64)
        return _whole(change, self.pair_step)

    def evidence(self, scores: Scores) -> Int64[np.ndarray, "row direction"]:
        """The largest score at any block, in 128ths of a standard deviation."""
        far = (scores.astype(np.float64) - self.centre) / self.spread * EVIDENCE
        cut = np.clip(far.max(axis=1), -(2**31), 2**31)
        found: np.ndarray[Any, np.dtype[np.int64]] = np.rint(cut).astype(np.int64)
        return found


def _steps(values: Float64[np.ndarray, "row layer direction"]) -> Table:
    far = 2 * np.quantile(np.abs(values), 0.98, axis=0)
    with np.errstate(divide="ignore"):
        power = np.where(far > 0, np.ceil(np.log2(far / LEVELS)), 0.0)
    found: Table = np.exp2(power)
    return found


def _whole(values: Float64[np.ndarray, "row layer direction"], step: Table) -> Whole:
    cut = np.clip(np.rint(values / step), -LEVELS, LEVELS)
    found: Whole = cut.astype(np.int64)
    return found


def row_signs(
    names: Sequence[str], *, flips: int, seed: int
) -> Int8[np.ndarray, "row flip"]:
    """The signs ±1 of rows, from a hash of (seed, row id): the same wherever it is read.

    Args:
        names: Row ids.
        flips: Signs of each row.
        seed: Of all of them.
    """
    secret = stream_seed(seed, "census flips").to_bytes(8, "little")
    size = (flips + 7) // 8
    drawn = b"".join(
        hashlib.shake_128(secret + name.encode("ascii")).digest(size) for name in names
    )
    packed = np.frombuffer(drawn, dtype=np.uint8).reshape(len(names), size)
    bits = np.unpackbits(packed, axis=1)[:, :flips]
    return 1 - 2 * bits.astype(np.int8)


def _added(one: Part, other: Part) -> Part:
    """Field by field."""
    kind: Any = type(one)
    found: Part = kind(
        **{f.name: getattr(one, f.name) + getattr(other, f.name) for f in fields(kind)}
    )
    return found


@dataclass(frozen=True)
class Side:
    """Sums over the rows of one set, in whole steps.

    Attributes:
        count: Rows, copies counted.
        tokens: Of their completions.
        tokens_square: Sum of their squares.
        total: [layer, direction], Σq.
        square: [layer, direction], Σq².
        repeats: Rows that stood in their batch before.
    """

    count: int
    tokens: int
    tokens_square: int
    total: Int64[np.ndarray, "layer direction"]
    square: Int64[np.ndarray, "layer direction"]
    repeats: int = 0

    @classmethod
    def nothing(cls, layers: int, directions: int) -> "Side":
        """Of no rows."""
        empty = np.zeros((layers, directions), dtype=np.int64)
        return cls(0, 0, 0, empty, empty)

    @classmethod
    def of(
        cls,
        values: Whole,
        counts: Sequence[int],
        tokens: Sequence[int],
        *,
        repeats: int = 0,
    ) -> "Side":
        """Of different rows, each standing there so often."""
        often = np.asarray(counts, dtype=np.int64)
        length = np.asarray(tokens, dtype=np.int64)
        return cls(
            int(often.sum()),
            int((often * length).sum()),
            int((often * length**2).sum()),
            np.einsum("r,rlk->lk", often, values),
            np.einsum("r,rlk->lk", often, values**2),
            repeats,
        )

    def __add__(self, other: "Side") -> "Side":
        return _added(self, other)


@dataclass(frozen=True)
class Compared:
    """Sums of what the test looks at: differences of pairs, or scores themselves.

    Attributes:
        count: Rows, copies counted.
        tokens: Σ of lengths, or of differences of lengths.
        tokens_square: Sum of their squares.
        total: [layer, direction], Σq.
        moments: [layer, direction, direction], Σqq'; its diagonal is Σq².
        flipped: [flip, layer, direction], Σ ε_b q.
        signs: [flip], Σ ε_b.
    """

    count: int
    tokens: int
    tokens_square: int
    total: Int64[np.ndarray, "layer direction"]
    moments: Int64[np.ndarray, "layer direction direction"]
    flipped: Int64[np.ndarray, "flip layer direction"]
    signs: Int64[np.ndarray, " flip"]

    @classmethod
    def nothing(cls, layers: int, directions: int, flips: int) -> "Compared":
        """Of no rows."""

        def zeros(*shape: int) -> Any:
            return np.zeros(shape, dtype=np.int64)

        return cls(
            0, 0, 0, zeros(layers, directions), zeros(layers, directions, directions),
            zeros(flips, layers, directions), zeros(flips),
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        values: Whole,
        counts: Sequence[int],
        tokens: Sequence[int],
        signs: Int8[np.ndarray, "row flip"],
    ) -> "Compared":
        """Of different rows, each standing there so often.

        Products of floats are exact here: all partial sums are whole numbers that the
        type holds (2²³ in float32, 2⁵³ in float64).
        """
        side = Side.of(values, counts, tokens)
        often = np.asarray(counts, dtype=np.int64)
        by_layer = values.transpose(1, 0, 2).astype(np.float64)
        weighted = by_layer * often[None, :, None]
        moments = np.rint(weighted.transpose(0, 2, 1) @ by_layer).astype(np.int64)
        return cls(
            side.count, side.tokens, side.tokens_square, side.total, moments,
            _flipped(values, often, signs), often @ signs.astype(np.int64),
        )  # fmt: skip

    def __add__(self, other: "Compared") -> "Compared":
        return _added(self, other)

    @property
    def square(self) -> Int64[np.ndarray, "layer direction"]:
        """Σq²."""
        found: np.ndarray[Any, np.dtype[np.int64]] = np.diagonal(
            self.moments, axis1=1, axis2=2
        )
        return found


def _flipped(
    values: Whole,
    counts: Int64[np.ndarray, " row"],
    signs: Int8[np.ndarray, "row flip"],
) -> Int64[np.ndarray, "flip layer direction"]:
    shape = values.shape[1:]
    found = np.zeros((signs.shape[1], values[0].size if len(values) else 0), np.int64)
    flat = values.reshape(len(values), -1) * counts[:, None]
    if not len(values):
        return np.zeros((signs.shape[1], *shape), dtype=np.int64)
    start = 0
    while start < len(values):
        # A part is one row at least; its copies may be more than float32 holds.
        end = start + max(1, int(np.searchsorted(np.cumsum(counts[start:]), _EXACT)))
        kind = np.float32 if counts[start:end].sum() <= _EXACT else np.float64
        part = signs[start:end].T.astype(kind) @ flat[start:end].astype(kind)
        found += np.rint(part).astype(np.int64)
        start = end
    return found.reshape(-1, *shape)


@dataclass(frozen=True)
class Top:
    """The rows with the most evidence along each direction: a list of bounded length.

    Attributes:
        most: Rows kept of each direction.
        direction: [entry], a place in the battery.
        value: [entry], in 128ths of a standard deviation; the largest come first.
        name: [entry], the row id as a number.
        place: [entry, 2], file and number of the row there, both from 0.
    """

    most: int
    direction: Int64[np.ndarray, " entry"]
    value: Int64[np.ndarray, " entry"]
    name: np.ndarray[Any, np.dtype[np.uint64]]
    place: Int64[np.ndarray, "entry 2"]

    @classmethod
    def nothing(cls, most: int) -> "Top":
        """Of no rows."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(
            most, empty, empty, np.zeros(0, np.uint64), np.zeros((0, 2), np.int64)
        )

    @classmethod
    def of(
        cls,
        evidence: Int[np.ndarray, "row direction"],
        directions: Sequence[int],
        names: Sequence[str],
        places: Sequence[tuple[int, int]],
        *,
        most: int,
    ) -> "Top":
        """Of rows, along some of the directions."""
        found = cls.nothing(most)
        if not names or not directions or not most:
            return found
        numbers = np.array([int(name, 16) for name in names], dtype=np.uint64)
        where = np.array(places, dtype=np.int64).reshape(-1, 2)
        kept = min(len(names), most)
        rows, labels = [], []
        for direction in directions:
            # Ties at the edge are all looked at, so that the order decides nothing.
            column = evidence[:, direction]
            edge = np.partition(column, len(column) - kept)[len(column) - kept]
            chosen = np.flatnonzero(column >= edge)
            rows.append(chosen)
            labels.append(np.full(len(chosen), direction, dtype=np.int64))
        row, label = np.concatenate(rows), np.concatenate(labels)
        value = evidence[row, label].astype(np.int64)
        return _first(cls(most, label, value, numbers[row], where[row]))

    def __add__(self, other: "Top") -> "Top":
        parts = (
            np.concatenate([getattr(self, n), getattr(other, n)])
            for n in ("direction", "value", "name", "place")
        )
        return _first(Top(max(self.most, other.most), *parts))


def _first(top: Top) -> Top:
    """The first of each direction, each row once, in an order of their own."""
    order = np.lexsort(
        (top.place[:, 1], top.place[:, 0], top.name, -top.value, top.direction)
    )
    kept: list[int] = []
    seen: set[tuple[int, int]] = set()
    left: dict[int, int] = {}
    for place in order.tolist():
        direction, name = int(top.direction[place]), int(top.name[place])
        if left.setdefault(direction, top.most) and (direction, name) not in seen:
            seen.add((direction, name))
            left[direction] -= 1
            kept.append(place)
    return Top(
        top.most, top.direction[kept], top.value[kept], top.name[kept], top.place[kept]
    )


@dataclass(frozen=True)
class Sums:
    """Everything that is kept of rows, whatever their number.

    Attributes:
        own: The audited rows' scores.
        partner: Their partners' scores; of no rows where there are none.
        compared: What is tested.
        top: Rows to look at.
        digest: Sum of the row ids' hashes modulo 2⁶⁴, copies counted.
        skipped: Rows left out, by reason.
    """

    own: Side
    partner: Side
    compared: Compared
    top: Top
    digest: int
    skipped: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def nothing(cls, layers: int, directions: int, *, flips: int, most: int) -> "Sums":
        """Of no rows: what leaves every other as it is."""
        side = Side.nothing(layers, directions)
        compared = Compared.nothing(layers, directions, flips)
        return cls(side, side, compared, Top.nothing(most), 0)

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both.

        Raises:
            RunError: More rows than 64 bits hold the squares of.
        """
        if self.own.count + other.own.count > MOST_ROWS:
            raise RunError(
                f"a census holds {MOST_ROWS:,} rows at most; got "
                f"{self.own.count + other.own.count:,}; divide the data"
            )
        reasons = sorted({*self.skipped, *other.skipped})
        return Sums(
            self.own + other.own,
            self.partner + other.partner,
            self.compared + other.compared,
            self.top + other.top,
            (self.digest + other.digest) % (1 << 64),
            {r: self.skipped.get(r, 0) + other.skipped.get(r, 0) for r in reasons},
        )


def ids_digest(names: Sequence[str], counts: Sequence[int]) -> int:
    """Sum of hashes of row ids modulo 2⁶⁴: the same in any order and division."""
    total = 0
    for name, count in zip(names, counts, strict=True):
        hashed = hashlib.blake2b(name.encode("ascii"), digest_size=8).digest()
        total += count * int.from_bytes(hashed, "big")
    return total % (1 << 64)
