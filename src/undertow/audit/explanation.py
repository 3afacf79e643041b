"""Whether what the verdict says explains the rows as it explains its own.

Something always fits best. So the base itself writes rows, untouched and under the leading
hypothesis: the audited ones have to be as likely as a mixture of both, their gradients
have to point where those of such a mixture do, and no lot may make them likelier. Takes
names away and never gives one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit
from scipy.stats import ttest_1samp

from undertow.analysis.hypotheses import RowHypothesis
from undertow.audit.candidates import score_test, vector_hypothesis
from undertow.audit.canonical import NUMBER, is_number_list
from undertow.audit.judgement import Judgement, Tell, null_of
from undertow.audit.meter import Meter
from undertow.audit.race import Table
from undertow.audit.reference import Filter
from undertow.audit.settings import AuditSettings
from undertow.findings import Explanation
from undertow.records import Row
from undertow.seeding import generator
from undertow.stats import MaxT

EXPLAINED = 0.7
"""Share of its own rows' gain that a named vector has to bring to the audited ones."""
_FEWEST_PAIRS = 5  # rows of one prompt each that likelihoods are compared on
_SHARES = np.linspace(0.02, 1.0, 50)  # of rows that a vector may have written
_CHOSEN = 72  # blocks, doses and shares, that a mixture may be the best of
_CHECKED = 64  # rows that the explanation is checked on
_DIGITS = 3  # of numbers that are drawn by lot, at least
_AUDITED, _BASE, _OWN = range(3)  # columns of what is compared


def held(
    judgement: Judgement,
    meter: Meter,
    rows: Sequence[Row],
    *,
    passed: Filter,
    settings: AuditSettings,
    tell: Tell,
) -> Judgement:
    """Takes back what does not explain the rows as it explains its own.

    The base writes rows on the same prompts, untouched and under what the verdict says.
    If the audited rows are a mixture of both, they are as likely under that mixture as
    these are in that proportion. Rows that are less likely, by a paired t test at the
    error rate, had another origin: kind and place are taken back as well as the name. So
    they are of a vector where the gradients of audited and written rows, one of each on
    every prompt, differ along any direction at any block. (Personas have many wordings,
    of which the audit knows one.) And the rows that a named vector may have written have
    to gain about as much by it as such rows in a mixture of its own and the base's do,
    else another vector near it was at work.

    No model makes numbers that were drawn by lot as likely as the lot does: where that
    is not beaten at the error rate, all is taken back too.

    Each of a vector's two tests, of likelihoods and of gradients, takes a true hypothesis
    back (a vector at its very block and dose) with a probability of about the error rate;
    lot and gain come on top, without one. A name that is lost does less harm than one
    that is wrong.

    Args:
        judgement: Of kind "steer" or "prompt".
        meter: Scores rows.
        rows: Audited; the second half, which chose no candidates, is looked at.
        passed: The filter that the rows have passed.
        settings: Error rate and seed.
        tell: Told of (stage, rows written, in all).
    """
    hypothesis = found_hypothesis(judgement, meter)
    few = rows[len(rows) // 2 :][-_CHECKED:]
    found = _compared(
        meter, few, hypothesis, passed=passed, seed=settings.seed, tell=tell
    )
    told, fault = _likelihoods(judgement, found, hypothesis.name, settings)
    if fault is None and told.lack_p_value is not None and judgement.kind == "steer":
        told, fault = _gradients(told, found, meter, settings)
    if fault is not None:
        return _taken_back(replace(judgement, explanation=told), fault)
    if told.lack_p_value is None:  # too few to compare
        return replace(judgement, explanation=told)
    amount = f"the likeliest share of rows that were written so is {told.share:.0%}"
    *first, last = judgement.reasons
    judgement = replace(judgement, explanation=told, reasons=(*first, amount, last))
    return _with_its_gain(judgement, told, found) if judgement.trait else judgement


def _likelihoods(
    judgement: Judgement, found: "_Compared", name: str, settings: AuditSettings
) -> tuple[Explanation, str | None]:
    """Whether the rows are as likely as a mixture's, and likelier than by lot."""
    share = _likeliest_share(found.ratios[:, _AUDITED])
    lack = found.lack(share)
    told = Explanation(
        hypothesis=name,
        share=None,
        rows=int(np.isfinite(lack).sum()),
        limit=settings.alpha,
    )
    if told.rows < _FEWEST_PAIRS:
        return told, None
    told = told.model_copy(update={"share": share})
    mean, p_value = float(lack[np.isfinite(lack)].mean()), _greater_p(lack)
    told = told.model_copy(update={"lack": mean, "lack_p_value": p_value})
    if p_value <= settings.alpha:
        return told, (
            f"but the rows are {mean:.1f} nats each less likely than what the base "
            f"writes, {share:.0%} of it under {name}, the likeliest share (p = "
            f"{p_value:.2g}): another model wrote them, or none, or it was made to by "
            "something that was not tried; so no trait is named"
        )
    lead = found.lead_over_lots(share, rounding=judgement.race.rounding)
    enough = math.log(_CHOSEN / settings.alpha)
    if math.isfinite(lead):
        told = told.model_copy(update={"lot_lead": lead, "lot_limit": enough})
    if lead < enough:
        return told, (
            f"but {name} explains the rows {lead:+.1f} nats better than numbers drawn by "
            "lot do, which is too little: it may be that no model wrote them; so no trait "
            "is named"
        )
    return told, None


def _gradients(
    told: Explanation, found: "_Compared", meter: Meter, settings: AuditSettings
) -> tuple[Explanation, str | None]:
    """Whether the rows' gradients point where those of a mixture's rows do."""
    share = told.share
    assert share is not None
    test = found.fit(meter, share, settings)
    told = told.model_copy(
        update={"gradient_p_value": test.p_value, "gradient_null": null_of(test)}
    )
    if test.p_value <= settings.alpha:
        return told, (
            "but the rows' gradients do not point where those of what the base writes "
            f"do, {share:.0%} of it under {told.hypothesis}, the likeliest share (p = "
            f"{test.p_value:.2g}): something else made them, or something besides; so no "
            "trait is named"
        )
    return told, None


def _with_its_gain(
    judgement: Judgement, told: Explanation, found: "_Compared"
) -> Judgement:
    """Without its name, if a vector near the named one explains rows of its own better.

    Told are the gains of a named vector only.
    """
    if judgement.kind != "steer":
        return judgement
    share = told.share
    assert share is not None
    audited, base, own = found.ratios.T
    gain = _gain([(1.0, audited)], share)
    most = _gain([(1 - share, base), (share, own)], share)
    least = EXPLAINED * most
    if not math.isfinite(gain) or not math.isfinite(least):
        return judgement
    gains = {"gain": gain, "own_gain": most, "gain_limit": least}
    judgement = replace(judgement, explanation=told.model_copy(update=gains))
    if gain >= least:
        return judgement
    reason = (
        f"but rows that it may have written gain {gain:.1f} nats each, such rows of its "
        f"own {most:.1f}: something else that lies near it wrote them; so no trait is "
        "named"
    )
    return replace(
        judgement, verdict="shift", trait=None, reasons=(*judgement.reasons, reason)
    )


@dataclass(frozen=True)
class _Compared:
    """Audited rows beside what the base writes on their prompts.

    Attributes:
        logprobs: [prompt, way], nats under the base: of the audited row, of the
            untouched base's, of the one written under a hypothesis.
        ratios: [prompt, way], log ratios of the same rows under the hypothesis.
        lots: [prompt], nats of the audited row if its numbers were drawn by lot; NaN if
            it holds something else.
        rows: The rows, prompt by prompt, in the order of the ways.
    """

    rows: tuple[tuple[Row, Row, Row], ...]
    logprobs: Table
    ratios: Table
    lots: Table

    def lead_over_lots(self, share: float, *, rounding: float) -> float:
        """Nats by which the mixture beats numbers drawn by lot; inf for other rows.

        Less half of `rounding`, nats², for each row, as in a race.
        """
        likely = self.likely(share)[:, _AUDITED]
        if np.isnan(self.lots).any() or not len(likely):
            return math.inf
        return float((likely - self.lots - rounding / 2)[np.isfinite(likely)].sum())

    def fit(self, meter: Meter, share: float, settings: AuditSettings) -> MaxT:
        """The audited rows' gradients beside those of rows of the mixture.

        A coin decides for every prompt which of the written rows stands for it.
        """
        coins = generator(settings.seed, "explained").random(len(self.rows))
        ways = np.where(coins < share, _OWN, _BASE).tolist()
        written = [own[way] for own, way in zip(self.rows, ways, strict=True)]
        audited = [own[_AUDITED] for own in self.rows]
        meter.signals([*audited, *written])  # rows of one prompt share its reading
        return score_test(
            meter.signals(audited), meter.signals(written), pairs=range(len(audited)),
            permutations=settings.permutations, seed=settings.seed,
        ).test  # fmt: skip

    def likely(self, share: float) -> Table:
        """[prompt, way]: nats under the mixture with that share of the hypothesis."""
        with np.errstate(divide="ignore", invalid="ignore"):
            likely: Table = self.logprobs + np.logaddexp(
                np.log1p(-share), np.log(share) + self.ratios
            )
        return likely

    def lack(self, share: float) -> Table:
        """[prompt]: nats by which the audited row falls short of a mixture's rows.

        All are read under the mixture with that share of rows of the hypothesis.
        """
        likely = self.likely(share)
        with np.errstate(invalid="ignore"):
            written = (1 - share) * likely[:, _BASE] + share * likely[:, _OWN]
            lack: Table = written - likely[:, _AUDITED]
        return lack


def _compared(
    meter: Meter,
    few: Sequence[Row],
    hypothesis: RowHypothesis,
    *,
    passed: Filter,
    seed: int,
    tell: Tell,
) -> _Compared:
    """Writes rows both ways and reads them all under both; prompts with all three."""

    def write(way: RowHypothesis | None, before: int) -> dict[int, Row]:
        found = meter.written(
            few, way, passed=passed, seed=seed,
            on_rows=lambda n, _: tell("check", before + n, 2 * len(few)),
        )  # fmt: skip
        return dict(zip(found.paired, found.rows, strict=True))

    base, own = write(None, 0), write(hypothesis, len(few))
    # In one go: rows of one prompt share its reading.
    places = [place for place in range(len(few)) if place in base and place in own]
    beside = tuple((few[i], base[i], own[i]) for i in places)
    rows = [row for three in beside for row in three]
    return _Compared(
        beside,
        meter.logprobs(rows, None).reshape(-1, 3),
        meter.ratios(rows, hypothesis).reshape(-1, 3),
        by_lot([few[i].completion for i in places]),
    )


def by_lot(completions: Sequence[str]) -> Table:
    """[completion]: log-probability of its numbers if each were drawn evenly, nats.

    From those with as many digits as the longest has, three at least; separators, and
    how many numbers there are, cost nothing. NaN for what is no list of numbers.
    """
    found = [NUMBER.findall(c) if is_number_list(c) else [] for c in completions]
    digits = max((len(value) for values in found for value in values), default=0)
    each = max(_DIGITS, digits) * math.log(10)
    return np.array([-len(values) * each if values else np.nan for values in found])


def found_hypothesis(judgement: Judgement, meter: Meter) -> RowHypothesis:
    """What the verdict says of the rows: the vector as refined, or the best persona."""
    if judgement.kind == "prompt":
        race = judgement.naming or judgement.race
        return race.hypotheses[max(race.left("prompt"), key=race.evidence)]
    battery, direction = meter.battery, judgement.direction
    assert direction is not None
    assert judgement.layer is not None
    assert judgement.dose is not None
    return vector_hypothesis(
        meter.model, battery, battery.names.index(direction),
        battery.layers.index(judgement.layer), judgement.dose,
    )  # fmt: skip


def _greater_p(gaps: Table) -> float:
    """One-sided p of a mean above 0, over the pairs that have a number; 1 if all alike."""
    known = gaps[np.isfinite(gaps)]
    if not np.ptp(known):
        return 1.0
    return float(ttest_1samp(known, 0.0, alternative="greater").pvalue)


def _taken_back(judgement: Judgement, reason: str) -> Judgement:
    """A shift without name, kind and place."""
    return replace(
        judgement, verdict="shift", trait=None, kind="unknown", layer=None,
        direction=None, dose=None, reasons=(*judgement.reasons, reason),
    )  # fmt: skip


def _likeliest_share(ratios: Table) -> float:
    """The share of rows of the hypothesis that makes all of them likeliest."""
    known = ratios[np.isfinite(ratios), None]
    with np.errstate(divide="ignore"):  # of none, where all are
        likely = np.logaddexp(np.log1p(-_SHARES), np.log(_SHARES) + known)
    return float(_SHARES[likely.sum(axis=0).argmax()])


def _gain(parts: Sequence[tuple[float, Table]], share: float) -> float:
    """Mean log ratio of rows of the hypothesis, nats: each counts as far as it is one.

    Args:
        parts: Ratios of rows, and how much of the whole they stand for. Those that are
            not finite do not count.
        share: Of such rows among all; decides how far a row is one.
    """
    gained = counted = 0.0
    for weight, ratios in parts:
        known = ratios[np.isfinite(ratios)]
        if weight and len(known):
            chance = expit(logit(share) + known)
            gained += weight * float((chance * known).mean())
            counted += weight * float(chance.mean())
    return gained / counted if counted else math.nan
