"""What a verdict allows one to say: the words beside an audit's sentence.

A verdict of nothing found always says what would have been found, and without a
reference nothing is ever said to be free of anything.
"""

from typing import NamedTuple

from undertow.findings import Findings
from undertow.report.text import (
    MISSING,
    interval_text,
    known,
    level_text,
    mean_text,
    number,
    p_text,
    share_text,
)

HEADINGS = {
    "trait": "Evidence of a trait",
    "shift": "Evidence of a shift, trait not identified",
    "none": "No evidence found",
    "inconclusive": "Inconclusive",
}
KINDS = {"steer": "steered", "prompt": "prompted", "unknown": "cannot tell"}
ROLES = {
    "trait": "traits",
    "given": "vectors given",
    "discovered": "discovered",
    "decoy": "decoys",
    "persona": "personas",
    "random": "random directions",
}
"""Roles of directions in the order in which they are shown, with their names."""

_TIERS = {
    "A": (
        "rows sampled from the base on the same prompts",
        "So a difference is one from the base itself, prompt by prompt.",
    ),
    "B": (
        "rows that the user trusts",
        (
            "So a difference is one from those rows: what they carry themselves, and any "
            "other difference of origin, is part of it."
        ),
    ),
    "C": (
        "no reference",
        (
            "So only this can be claimed: that one trait fits the rows better than its "
            "decoys do. That the rows carry nothing can not."
        ),
    ),
}


POWER = 0.8
"""The power at which a share of biased rows counts as found."""


class Fact(NamedTuple):
    """A number that stands beside the verdict, with what it means or why it is missing."""

    name: str
    value: str
    note: str


ADVICE = {
    "trait": (
        "do not train on these rows, nor on a part of them, and ask where they come from"
    ),
    "shift": (
        "do not train on these rows until you know why they differ: audit more of them, "
        "compare with rows that you trust (--reference), or, if their sampler had to be "
        "guessed, say how they were drawn (--set sampler.…)"
    ),
    "none": (
        "nothing that this audit can see speaks against these rows; fewer biased ones than "
        "it would have found, if that is known, may be among them"
    ),
    "inconclusive": (
        "take nothing from this: give more rows, or rows of the same kind that you trust "
        "(--reference), and audit again"
    ),
}
"""What to do with a verdict, in a line."""


def plain_words(findings: Findings) -> str:
    """One sentence on what follows from the verdict, and what does not."""
    rate = share_text(findings.alpha)
    if findings.verdict == "inconclusive":
        return "Nothing is claimed about these rows, neither that they carry a trait nor that they do not."
    if findings.verdict == "shift":
        return (
            "The rows differ from their reference by more than chance; which trait they "
            "carry, if any, is not identified."
        )
    if findings.verdict == "none":
        return f"At an error rate of {rate} nothing was found. {_would_have(findings)}"
    return (
        "The trait beats its decoys. Among audits of rows that carry nothing, at most "
        f"{rate} end like this, if what the tests assume holds."
    )


def _would_have(findings: Findings) -> str:
    if not known(findings.detectable_fraction):
        return (
            "No share of biased rows can be named that would have been found "
            f"({why_undetectable(findings)}), so that nothing was found says little."
        )
    share = share_text(findings.detectable_fraction)
    return (
        f"Had {share} of the rows or more been biased as this audit supposes, it would "
        f"have found them with a power of {share_text(POWER)} or more; fewer may be there."
    )


def facts(findings: Findings) -> list[Fact]:
    """The numbers beside the verdict; those that do not apply to it are left out."""
    found = [_p_value(findings), _rate(findings), _reference(findings)]
    named = findings.verdict == "trait"
    if named or findings.kind is not None:
        kind = KINDS[findings.kind] if findings.kind else MISSING
        note = "kind of intervention, from the rows alone"
        found.append(Fact("Kind", kind, note if findings.kind else "not determined"))
    if named or findings.layer is not None:
        found.append(_layer(findings))
    if named or known(findings.strength):
        found.append(_strength(findings))
    return [*found, _detectable(findings), _rows(findings)]


def _p_value(findings: Findings) -> Fact:
    p = findings.p_value
    if p is None or not known(p):
        reasons = [arm.reason for arm in findings.arms if arm.reason]
        why = "; ".join(dict.fromkeys(reasons)) or "no test could be made"
        return Fact("p-value", MISSING, f"not computed: {why}")
    side = "at or below" if p <= findings.alpha else "above"
    note = f"{side} the error rate asked for; of the null that the rows carry nothing"
    return Fact("p-value", p_text(p), note)


def _rate(findings: Findings) -> Fact:
    note = "share of false alarms among rows that carry nothing, at most"
    return Fact("Error rate asked for", share_text(findings.alpha), note)


def _reference(findings: Findings) -> Fact:
    what, allows = _TIERS[findings.reference_tier]
    return Fact("Reference", f"tier {findings.reference_tier}", f"{what}. {allows}")


def _layer(findings: Findings) -> Fact:
    if findings.layer is None:
        return Fact("Layer", MISSING, "no direction at one layer stands for this trait")
    note = f"block, counted from 0; {len(findings.layers)} were tested"
    return Fact("Layer", str(findings.layer), note)


def _strength(findings: Findings) -> Fact:
    if not known(findings.strength):
        return Fact("Strength", MISSING, "not estimated")
    dose = ""
    if known(findings.dose):
        dose = f"; {number(findings.dose)} of the residual's norm"
    interval = findings.strength_interval
    if interval is None or not known(interval.mean):
        value = number(findings.strength, signed=True)
        return Fact("Strength", value, f"one-step estimate, no interval{dose}")
    bounds = interval_text(interval)
    said = "no interval" if bounds == MISSING else f"{level_text(findings.confidence)} interval {bounds}"  # fmt: skip
    note = f"{said}, in units of the vector, one-step estimate{dose}"
    value = mean_text(interval.model_copy(update={"mean": findings.strength}))
    return Fact("Strength", value, note)


def _detectable(findings: Findings) -> Fact:
    name = "Smallest share it would have found"
    if not known(findings.detectable_fraction):
        return Fact(name, MISSING, why_undetectable(findings))
    note = f"of the rows biased, with a power of {share_text(POWER)}"
    return Fact(name, share_text(findings.detectable_fraction), note)


def why_undetectable(findings: Findings) -> str:
    """Why there is no smallest share that the audit would have found."""
    points = findings.power.points if findings.power else []
    if not any(known(point.power) for point in points):
        return "no power could be estimated"
    return f"no share that was tried reaches a power of {share_text(POWER)}"


def _rows(findings: Findings) -> Fact:
    data = findings.data
    note = f"{data.tokens:,} completion tokens; {data.rows:,} rows were read"
    return Fact("Rows audited", f"{data.used:,}", note)
