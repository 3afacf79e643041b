"""What each figure of an audit rests on: how many rows, which seed, what is over what.

Read from the findings alone, in the form of `report.captions`. Knows nothing of drawing.
"""

from collections.abc import Callable, Iterable

from undertow.findings import Findings
from undertow.report.captions import Basis, counted
from undertow.report.text import level_text

_NONE = "none drawn"


def audit_captions(findings: Findings, names: Iterable[str]) -> dict[str, Basis]:
    """What each of the named figures rests on.

    Args:
        findings: What the audit found.
        names: Of figures, as `report.audit_figures.draw_audit_figures` gives them.
    """
    seed = findings.provenance.get("seed")
    seeds = "not recorded" if seed is None else f"{seed} alone"
    return {
        name: Basis(n, seeds, interval)
        for name in names
        for n, interval in [_BASES[name](findings)]
    }


def _both(findings: Findings) -> str:
    own = counted([findings.data.used], "audited row")
    reference = findings.reference
    if not reference.rows:
        return f"{own} without a reference"
    return f"{own}, {counted([reference.rows], 'reference row')}"


def _directions(findings: Findings) -> tuple[str, str]:
    return _both(findings), f"{_NONE}, z is in standard errors over rows"


def _hypotheses(findings: Findings) -> tuple[str, str]:
    rows = counted((each.rows for each in findings.hypotheses), "audited row")
    over = f"{level_text(findings.confidence)}, over rows, paired with the leader's"
    return f"{rows} each, fewer where a hypothesis was dropped", over


def _explanation(findings: Findings) -> tuple[str, str]:
    assert findings.explanation is not None
    prompts = counted([findings.explanation.rows], "prompt")
    return f"{prompts}, an audited and a written row each", _NONE


def _null(findings: Findings) -> tuple[str, str]:
    assert findings.max_null is not None
    drawn = min(len(findings.max_null.draws), findings.max_null.permutations)
    return f"{_both(findings)}; {drawn:,} shufflings drawn", _NONE


def _power(findings: Findings) -> tuple[str, str]:
    return _both(findings), f"{_NONE}, power is computed for so many rows"


def _baselines(findings: Findings) -> tuple[str, str]:
    return _both(findings), f"{level_text(findings.confidence)}, over rows"


def _battery(findings: Findings) -> tuple[str, str]:
    return f"1 direction, from half of {_both(findings)}", _NONE


_BASES: dict[str, Callable[[Findings], tuple[str, str]]] = {
    "directions": _directions,
    "hypotheses": _hypotheses,
    "explanation": _explanation,
    "null": _null,
    "power": _power,
    "baselines": _baselines,
    "battery": _battery,
}
"""By name of the figure."""
