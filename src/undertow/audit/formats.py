"""Is what was found more than a difference of format?

Shortcuts (see `baselines`) say whether length, values or separators alone tell the
sets apart; if they do, the score test is repeated on rows that were rewritten and
matched. Knows nothing of how the verdict came about.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from undertow.audit.baselines import SEPARATORS, format_differs, shortcut_baselines
from undertow.audit.candidates import score_test
from undertow.audit.canonical import canonical_rows, matched_by_length
from undertow.audit.judgement import Judgement
from undertow.audit.meter import Meter
from undertow.audit.reference import Reference
from undertow.audit.settings import AuditSettings
from undertow.findings import Baseline
from undertow.models.chat import render_row
from undertow.models.scoring import DrawLikelihood
from undertow.records import Row
from undertow.traits import TraitFamily


def shortcuts(
    meter: Meter,
    rows: Sequence[Row],
    reference: Reference,
    *,
    family: TraitFamily,
    seed: int,
) -> list[Baseline]:
    """What trivial features tell of the two sets; none without a reference."""
    if not reference.rows:
        return []
    sides = [meter.signals(rows), meter.signals(reference.rows)]
    means = [(s.total_logprobs / s.tokens).tolist() for s in sides]
    return shortcut_baselines(
        rows, reference.rows, family=family, logprobs=(means[0], means[1]),
        seed=seed,
    )  # fmt: skip


def with_formats(
    judgement: Judgement,
    meter: Meter,
    rows: Sequence[Row],
    reference: Reference,
    *,
    baselines: Sequence[Baseline],
    settings: AuditSettings,
) -> Judgement:
    """Repeats the score test on rows of one format, if format separates the sets.

    What was found stays if the test holds there, or if the exact arm, which compares
    no formats, holds by itself; else the verdict is "inconclusive".
    """
    differs = format_differs(baselines)
    if differs is None or judgement.verdict not in ("trait", "shift"):
        return judgement
    sides: list[list[Row]] = [list(rows), list(reference.rows)]
    if any(b.name == SEPARATORS and b.separates for b in baselines):
        sides = [_of_one_format(meter, side) for side in sides]
    matched = matched_by_length(sides[0], sides[1], seed=settings.seed)
    mine = meter.signals([sides[0][i] for i in matched.audited])
    theirs = meter.signals([sides[1][i] for i in matched.reference])
    again = score_test(
        mine, theirs, pairs=(), permutations=settings.permutations, seed=settings.seed
    )
    p_value, warned = again.test.p_value, (*judgement.warnings, differs)
    said = f"{len(mine.row_ids)} rows of each set with the same format"
    exact = next(arm.p_value for arm in judgement.arms if arm.name == "exact")
    if p_value <= settings.alpha:
        reason = f"the score test holds on {said} (p = {p_value:.2g})"
        return replace(judgement, warnings=warned, reasons=(*judgement.reasons, reason))
    if exact is not None and exact <= settings.alpha:
        reason = f"the exact arm does not compare formats (p = {exact:.2g})"
        return replace(judgement, warnings=warned, reasons=(*judgement.reasons, reason))
    reason = f"on {said} the score test shows nothing (p = {p_value:.2g})"
    if math.isnan(p_value):
        reason = f"{said} are too few for the score test"
    return replace(
        judgement, verdict="inconclusive", trait=None, kind=None, layer=None,
        dose=None, direction=None, warnings=warned, reasons=(differs, reason, _ADVICE),
    )  # fmt: skip


_ADVICE = (
    "compare with rows of the same kind and length that you trust (--reference), say how "
    "the rows were drawn (--set sampler.…), or audit more rows"
)


def _of_one_format(meter: Meter, rows: Sequence[Row]) -> list[Row]:
    """Canonical rows, but for those that are empty then or that no draw gives."""
    likelihood = DrawLikelihood(meter.model, meter.sampler)
    found = [row for row in canonical_rows(rows) if row.completion]
    return [
        row
        for row in found
        if likelihood.drawn(
            render_row(meter.model, row, system=meter.system)
        ).is_possible
    ]
