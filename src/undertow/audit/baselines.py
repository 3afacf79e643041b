"""Shortcuts: how well trivial features tell the audited rows from the reference.

A score of an audit is worth little where a comma does as well. There are two sorts:

- *Quantities* (length, number of values, trait words, perplexity) are not fitted. The
  AUROC is that of the value itself or of its distance from the middle, in either
  direction, whichever is largest: without a difference its mean lies above 0.5. The
  interval pays for the choice (a Bonferroni factor of 2; turning it round is free, as
  bounds turn with it), so it covers 0.5 at its level.
- *Fitted* ones (separators, digits, n-grams) are logistic regressions, fitted on four
  fifths of the rows and read on the fifth; rows with the same prompt share a fold. The
  AUROC is out of sample and not turned round: without a difference its mean is 0.5.
  It scatters more than its interval says, as folds share rows, and mostly to the low
  side: a rule that folds disagree about does worse than chance. Only the lower bound
  is ever used, and 0.6 leaves room.

Only length, number of values and separators speak of format, and `canonical` can take
exactly these away. Digits, n-grams, words and perplexity see what the rows say, the
trait included: they stand beside the score and never make a verdict. Knows nothing of
scores or models.
"""

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from undertow.audit.canonical import NUMBER, is_number_list, plain_length, value_count
from undertow.findings import Baseline, Bounds
from undertow.interventions.prompting import trait_prompt
from undertow.records import Row
from undertow.seeding import stream_seed
from undertow.stats import Interval, auroc
from undertow.traits import TraitFamily

LENGTH = "length"
VALUES = "number of values"
SEPARATORS = "separators"
DIGITS = "digit frequencies"
NGRAMS = "character n-grams"
WORDS = "trait words"
PERPLEXITY = "perplexity"
FORMAT = (LENGTH, VALUES, SEPARATORS)
NAMES = (*FORMAT, DIGITS, NGRAMS, WORDS, PERPLEXITY)

FEWEST = 10  # rows of a side below which nothing is said
MOST = 2_000  # rows of a side that are looked at
SEPARATES = 0.6  # the least lower bound of a shortcut that is taken seriously
FOLDS = 5
_CATEGORIES = 50  # separators told apart; the rest are too rare to matter
_NGRAM_TEXT = 500  # characters of a completion that n-grams are made of
_WORD_TEXT = 2_000  # and that words are looked for in
_BUCKET_BITS = 13  # n-grams are hashed into 8,192 columns
# An ideograph, a kana or an emoji is a word of its own.
_WORD = re.compile(r"[^\W\u2e80-\u9fff]+|[^\x00-\x7f]")

Sides = Bool[np.ndarray, " row"]
Folds = Int[np.ndarray, " row"]
Numbers = Float[np.ndarray, " row"]


class _Sets(NamedTuple):
    """Both sets as one: audited rows first, each side in the order of its row ids."""

    rows: list[Row]
    nats: Numbers  # mean a token under the base, NaN where unknown
    labels: Sides  # True where audited
    notes: tuple[str, ...]


class _Reading(NamedTuple):
    """What one baseline gave."""

    auroc: Interval
    note: str | None = None


_UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)


def shortcut_baselines(
    audited: Sequence[Row],
    reference: Sequence[Row],
    *,
    family: TraitFamily,
    logprobs: tuple[Sequence[float], Sequence[float]] | None,
    seed: int,
) -> list[Baseline]:
    """The AUROC of every shortcut, with its interval, in the order of `NAMES`.

    A shortcut separates the sets if the lower bound is 0.6 or more: a mean above 0.6
    is noise with twenty rows. The intervals (DeLong's) take rows for independent; many
    rows a prompt make them too narrow where the prompts of the two sets differ.

    Args:
        audited: Rows of unknown origin.
        reference: Rows to compare them with.
        family: Whose words are looked for.
        logprobs: Mean nats a token under the base, of each audited and each reference
            row in order (NaN where there is none); None leaves perplexity unknown.
        seed: Of the folds. The order of rows changes nothing.

    Returns:
        One baseline a name. Bounds are None, with a note, where a side has fewer than
        ten rows or the rows are too alike to fit on some and read on others.

    Cost: a few seconds at most, as 2,000 rows of a side are looked at.
    """
    if logprobs is None:
        logprobs = ([math.nan] * len(audited), [math.nan] * len(reference))
    sets = _sets((audited, reference), logprobs, seed)
    if min(len(audited), len(reference)) < FEWEST:
        counts = f"{len(audited)} audited and {len(reference)} reference rows"
        reading = _Reading(_UNKNOWN, f"{counts}: {FEWEST} of each are needed")
        return [_baseline(name, reading, ()) for name in NAMES]
    readings = _readings(sets, family, seed)
    return [_baseline(name, readings[name], sets.notes) for name in NAMES]


def format_differs(baselines: Sequence[Baseline]) -> str | None:
    """A sentence if format alone separates the sets, else None.

    Only what `canonical_rows` and `matched_by_length` take away counts as format.
    """
    found = [b for b in baselines if b.name in FORMAT and b.separates]
    if not found:
        return None
    shown = " and ".join(
        f"{b.name} (AUROC {b.auroc.mean:.2f} [{b.auroc.low:.2f}, {b.auroc.high:.2f}])"
        for b in found
    )
    return (
        f"Format differs: {shown} alone can tell audited rows from the reference, so a "
        "difference in scores may come from the format."
    )


def _baseline(name: str, reading: _Reading, notes: Sequence[str]) -> Baseline:
    mean, low, high, _ = reading.auroc
    separates = bool(low >= SEPARATES)
    remarks = [*notes, *filter(None, [reading.note])]
    if separates and name not in FORMAT:
        remarks.append("sees what the rows say, the trait included")
    return Baseline(
        name=name,
        auroc=Bounds(mean=_number(mean), low=_number(low), high=_number(high)),
        separates=separates,
        note="; ".join(remarks) or None,
    )


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _sets(
    sides: tuple[Sequence[Row], Sequence[Row]],
    logprobs: tuple[Sequence[float], Sequence[float]],
    seed: int,
) -> _Sets:
    rows: list[Row] = []
    nats: list[float] = []
    labels: list[bool] = []
    notes: list[str] = []
    for name, side, values in zip(
        ("audited", "reference"), sides, logprobs, strict=True
    ):
        if len(side) != len(values):
            raise ValueError(f"{len(side)} rows and {len(values)} log-probabilities")
        places = _places(side, values, seed)
        if len(places) < len(side):
            notes.append(f"{len(places):,} of {len(side):,} {name} rows drawn")
        rows += [side[place] for place in places]
        nats += [float(values[place]) for place in places]
        labels += [name == "audited"] * len(places)
    return _Sets(
        rows,
        np.asarray(nats, dtype=float),
        np.asarray(labels, dtype=bool),
        tuple(notes),
    )


def _places(rows: Sequence[Row], values: Sequence[float], seed: int) -> list[int]:
    """Places in the order of the row ids; of many rows, those that are drawn."""
    ids = [row.row_id for row in rows]
    places: Sequence[int] = range(len(rows))
    if len(rows) > MOST:
        drawn = [stream_seed(seed, "baseline rows", row_id) for row_id in ids]
        places = sorted(places, key=lambda i: (drawn[i], str(values[i])))[:MOST]
    return sorted(places, key=lambda i: (ids[i], str(values[i])))


def _readings(sets: _Sets, family: TraitFamily, seed: int) -> dict[str, _Reading]:
    texts, labels = [row.completion for row in sets.rows], sets.labels
    folds, note = _folds(sets.rows, labels, seed)

    def fitted(features: Any, strength: float = 1.0) -> _Reading:
        if folds is None:
            return _Reading(_UNKNOWN, note)
        scores = _cross_fitted(features, labels, folds, strength)
        return _Reading(auroc(scores[labels], scores[~labels]), _tied(scores) or note)

    return {
        LENGTH: _of_quantity(_each(plain_length, texts), labels),
        VALUES: _of_quantity(_each(value_count, texts), labels),
        SEPARATORS: fitted(_separators(texts)),
        DIGITS: fitted(_digit_shares(texts)),
        NGRAMS: fitted(_ngrams(texts), strength=10.0),
        WORDS: _of_quantity(_similarity(texts, family), labels),
        PERPLEXITY: _of_quantity(sets.nats, labels),
    }


def _tied(values: Numbers) -> str | None:
    return "the same in all rows" if bool((values == values[0]).all()) else None


def _of_quantity(values: Numbers, labels: Sides) -> _Reading:
    """AUROC of a number a row, or of its distance from the middle if that is larger."""
    known = ~np.isnan(values)
    values, labels = values[known], labels[known]
    missing = int((~known).sum())
    note = f"{missing:,} of {len(known):,} rows have no value" if missing else None
    if min(labels.sum(), (~labels).sum()) < FEWEST:
        return _Reading(_UNKNOWN, note)
    ranks = rankdata(values)
    spread = np.abs(ranks - (len(ranks) + 1) / 2)
    direct, distance = (_turned(scores, labels) for scores in (ranks, spread))
    if distance.mean > direct.mean:
        remark = "by its distance from the middle"
        return _Reading(distance, "; ".join(filter(None, [note, remark])))
    return _Reading(direct, note or _tied(values))


def _turned(scores: Numbers, labels: Sides) -> Interval:
    """AUROC in the direction in which it is larger, one of two choices."""
    above, below = scores[labels], scores[~labels]
    found = auroc(above, below, confidence=1 - (1 - 0.95) / 2)
    if found.mean >= 0.5:
        return found
    return Interval(1 - found.mean, 1 - found.high, 1 - found.low, found.n)


def _folds(
    rows: Sequence[Row], labels: Sides, seed: int
) -> tuple[Folds | None, str | None]:
    """A fold for each row, or None, and what is unusual about it."""
    prompts = [json.dumps([[m.role, m.content] for m in row.messages]) for row in rows]
    folds = _grouped(prompts, labels, seed)
    if folds is not None:
        return folds, None
    folds = _grouped([row.row_id for row in rows], labels, seed)
    if folds is not None:
        return folds, "too few prompts: rows of one prompt are in several folds"
    return None, "rows too alike to fit on some and read on others"


def _grouped(keys: Sequence[str], labels: Sides, seed: int) -> Folds | None:
    """Folds that hold whole groups and about a fifth of either side each.

    None if a fold has less than a tenth or more than three tenths of a side.
    """
    members: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        members.setdefault(key, []).append(place)
    drawn = {key: stream_seed(seed, "baseline folds", key) for key in members}
    sides = np.stack([labels, ~labels], axis=1) / [labels.sum(), (~labels).sum()]
    folds, held = np.zeros(len(keys), dtype=int), np.zeros((FOLDS, 2))
    # Large groups first; each goes where its own side is rarest.
    for key in sorted(members, key=lambda key: (-len(members[key]), drawn[key])):
        share = sides[members[key]].sum(axis=0)
        crowd = np.round(held @ (share / share.sum()), 9)
        fold = int(np.lexsort((np.round(held.sum(axis=1), 9), crowd))[0])
        folds[members[key]] = fold
        held[fold] += share
    even = held.min() > 0.5 / FOLDS - 1e-9 and held.max() < 1.5 / FOLDS + 1e-9
    return folds if even else None


def _cross_fitted(
    features: Any, labels: Sides, folds: Folds, strength: float
) -> Numbers:
    """Out-of-fold ranks of the rows within their fold, in (0, 1).

    Ranks, since two folds' models differ in offset and scale, and what they differ by
    depends on the labels of the other's rows: raw scores of both together lie below
    0.5 where there is nothing to find.
    """
    scores = np.zeros(len(labels))
    for fold in np.unique(folds):
        test = folds == fold
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=200)
        with warnings.catch_warnings():
            # A fit that stops early is a shortcut as well.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features[~test], labels[~test])
        raw = model.decision_function(features[test])
        # Equal features may differ in the last digits; they have to tie.
        even = np.round(raw / max(np.abs(raw).max(), 1e-9), 9)
        scores[test] = rankdata(even) / (test.sum() + 1)
    return scores


def _each(measure: Callable[[str], int], texts: Sequence[str]) -> Numbers:
    return np.array([float(measure(text)) for text in texts])


def _separators(texts: Sequence[str]) -> Any:
    """What `canonical_text` would change, as shares of a row's gaps.

    Zero for a text in canonical form, whatever it says and however long it is.
    """
    found = [_oddities(text) for text in texts]
    seen = Counter(name for names in found for name in names)
    ranked = sorted(seen, key=lambda name: (-seen[name], name))[:_CATEGORIES]
    columns = ranked or [("none", "")]
    matrix = [[names.get(name, 0.0) for name in columns] for names in found]
    return sparse.csr_array(np.array(matrix))


def _oddities(text: str) -> dict[tuple[str, str], float]:
    """Gaps that are not canonical: what stands before, between and after."""
    body = text if is_number_list(text) else ""
    pieces = NUMBER.split(body) if body else re.split(r"\S+", text)
    usual = ", " if body else " "
    first, last, between = pieces[0], pieces[-1], Counter(pieces[1:-1])
    odd = {("before", first[:8]): 1.0} if first else {}
    if last and len(pieces) > 1:
        odd["after", last[:8]] = 1.0
    total = between.total()
    for gap, count in between.items():
        if gap != usual:
            name = ("between", gap[:8])
            odd[name] = odd.get(name, 0.0) + count / total
    return odd


def _digit_shares(texts: Sequence[str]) -> Any:
    """Share of each digit among a text's digits, standardised over all rows."""
    digits = [_ascii_digits(text) for text in texts]
    counts = np.array([[text.count(d) for d in "0123456789"] for text in digits])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    spread = shares.std(axis=0)
    scale = np.where(spread > 1e-12, spread, np.inf)
    return sparse.csr_array((shares - shares.mean(axis=0)) / scale)


def _ascii_digits(text: str) -> str:
    if text.isascii():
        return text
    return "".join(str(int(char)) for char in text if char.isdecimal())


def _ngrams(texts: Sequence[str]) -> Any:
    """TF-IDF of one to three characters, hashed; lone surrogates are characters."""
    parts = [
        np.frombuffer(text[:_NGRAM_TEXT].encode("utf-32-le", "surrogatepass"), "<u4")
        for text in texts
    ]
    owners = np.repeat(np.arange(len(texts)), [len(part) for part in parts])
    codes = np.concatenate(parts).astype(np.uint64) + np.uint64(1)
    shape = (len(texts), 1 << _BUCKET_BITS)
    counts = sparse.csr_array(shape)
    for size in (1, 2, 3):
        starts = max(0, len(codes) - size + 1)
        keys = np.zeros(starts, dtype=np.uint64)
        for offset in range(size):
            keys = keys * np.uint64(2_097_169) + codes[offset : offset + starts]
        columns = (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _BUCKET_BITS)
        # An n-gram lies in one text.
        whole = owners[:starts] == owners[size - 1 :][:starts]
        place = (owners[:starts][whole], columns[whole].astype(np.int64))
        counts += sparse.coo_array((np.ones(whole.sum()), place), shape=shape).tocsr()
    # Most columns are empty; one stays if all are.
    used = np.union1d(counts.indices, [0])
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts[:, used])


def _similarity(texts: Sequence[str], family: TraitFamily) -> Numbers:
    """Largest TF-IDF cosine of each text with the words of any trait."""
    traits = [
        " ".join(
            (
                trait.name,
                trait.plural,
                *trait.spellings,
                trait_prompt(family, trait.name),
            )
        )
        for trait in family.traits
    ]
    rows = [text[:_WORD_TEXT] for text in texts]
    if not any(map(_words, traits)):
        return np.zeros(len(texts))
    vectors = TfidfVectorizer(analyzer=_words).fit([*rows, " ".join(traits)])
    table = vectors.transform(rows) @ vectors.transform(traits).T
    return np.asarray(table.max(axis=1).todense()).ravel().round(12)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
