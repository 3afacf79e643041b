"""The tables of an audit, as values that a template can lay out.

Beside every dash stands why there is no number. Knows nothing of HTML.
"""

from collections.abc import Sequence

from undertow.findings import Bounds, Findings, ForecastRow, Number
from undertow.report.audit_data import (
    hypothesis_rows,
    ordered_directions,
    peak,
)
from undertow.report.audit_words import POWER, ROLES, why_undetectable
from undertow.report.run_tables import facts_table
from undertow.report.tables import Cell, Row, Table, value_cell
from undertow.report.text import (
    MISSING,
    duration_text,
    evalue_text,
    interval_text,
    known,
    level_text,
    mean_text,
    number,
    p_text,
    share_text,
)

UNKNOWN = "could not be computed"


def _signed(value: Number, *, why: str = UNKNOWN, digits: int = 2) -> Cell:
    text = number(value, digits=digits, signed=True)
    return Cell(text, why=why if text == MISSING else "")


def _p(value: Number, *, why: str = UNKNOWN) -> Cell:
    text = p_text(value)
    return Cell(text, why=why if text == MISSING else "")


def _share(value: Number, *, why: str = UNKNOWN) -> Cell:
    text = share_text(value)
    return Cell(text, why=why if text == MISSING else "")


def _bounds(
    bounds: Bounds | None, *, signed: bool, absent: str = "was not measured"
) -> Cell:
    """Mean over interval, with the reason for what is missing."""
    if bounds is None:
        return Cell(MISSING, why=absent)
    mean = mean_text(bounds, signed=signed)
    if mean == MISSING:
        return Cell(MISSING, why=UNKNOWN)
    interval = interval_text(bounds, signed=signed)
    why = "no interval could be computed" if interval == MISSING else ""
    return Cell(mean, interval, why=why)


def arms_table(findings: Findings) -> Table:
    """One row for each test of the null: question, statistic, p, what it assumes."""
    rows = []
    for arm in findings.arms:
        why = f"{arm.name}: {arm.reason or UNKNOWN}"
        rows.append((
            Cell(arm.question, arm.name),
            _signed(arm.statistic, why=why),
            Cell(p_text(arm.p_value), why=why if p_text(arm.p_value) == MISSING else ""),
            Cell(f"{arm.rows:,}"),
            Cell(arm.assumes, arm.reason or ""),
        ))  # fmt: skip
    columns = ("question", "#statistic", "#p", "#rows", "what has to hold")
    return Table("Tests of the null", columns, tuple(rows))


def directions_table(findings: Findings) -> Table:
    """Every direction at the layer of its largest z, with its p-values."""
    rows = []
    for d in ordered_directions(findings):
        at = peak(d.z)
        why = "no z could be computed for it"
        layer = findings.layers[at] if at is not None and at < len(findings.layers) else None  # fmt: skip
        rows.append((
            Cell(d.name, ROLES[d.role]),
            _signed(d.z[at] if at is not None else None, why=why),
            Cell(MISSING, why=why) if layer is None else Cell(str(layer)),
            _p(d.adjusted_p, why="no permutations were made for it"),
            _p(findings.trait_p_values.get(d.name), why="adjusted over traits only"),
        ))  # fmt: skip
    columns = (
        "direction", "#largest z", "#at layer", "#max-T p", "#BH p",
    )  # fmt: skip
    note = (
        "max-T p: adjusted over all directions and layers by permutation. BH p: "
        "Benjamini–Hochberg over traits."
    )
    return Table("Every direction", columns, tuple(rows), (note,))


def hypotheses_table(findings: Findings) -> Table:
    """Every hypothesis, the leader first."""
    kinds = {"prompt": "trait prompt", "steer": "vector"}
    rows = []
    for h in hypothesis_rows(findings):
        place = kinds[h.kind]
        if h.layer is not None:
            place += f", layer {h.layer}"
        if known(h.strength):
            place += f", strength {number(h.strength)}"
        if h.role == "decoy":
            place += ", decoy"
        behind = Bounds(mean=h.behind, low=h.behind_low, high=h.behind_high)
        evalue = evalue_text(h.log_evalue)
        rows.append((
            Cell(h.name, place),
            _signed(h.nats_per_row, digits=3),
            _signed(h.reference_nats_per_row, why="not scored on a reference", digits=3),
            _bounds(behind if known(h.behind) else None, signed=True,
                    absent="the leader, or not compared with it"),
            Cell(evalue, why="no e-value: see the tests" if evalue == MISSING else ""),
            Cell(f"{h.rows:,}"),
            Cell(h.dropped or "stayed to the end"),
        ))  # fmt: skip
    columns = (
        "hypothesis", "#nats a row", "#reference", "#behind the leader", "#e-value",
        "#rows", "race",
    )  # fmt: skip
    note = (
        "Nats a row: mean log-likelihood ratio against the base. Brackets: "
        f"{level_text(findings.confidence)} intervals of paired differences."
    )
    return Table("Every hypothesis", columns, tuple(rows), (note,))


def power_table(findings: Findings) -> Table:
    """What this audit needs, beside what any test would."""
    power = findings.power
    rows: list[Row] = []
    if power is not None:
        low = why_undetectable(findings)
        needed, bound = power.rows_needed, power.rows_bound
        efficiency = None
        if needed and bound and known(needed) and known(bound):
            efficiency = bound / needed
        rows = [
            (Cell("smallest share of biased rows found"), _share(power.detectable_fraction, why=low)),
            (Cell("divergence, nats a row"), value_cell(power.divergence_per_row, digits=3)),
            (Cell("rows needed, all of them biased"), _rows_cell(needed)),
            (Cell("rows that any test needs at least"), _rows_cell(bound)),
            (Cell("efficiency: the bound over what is needed"), value_cell(efficiency)),
        ]  # fmt: skip
    note = (
        f"At an error rate of {share_text(findings.alpha)} and a power of "
        f"{share_text(POWER)}. The bound is ln(1/α)/D with D the divergence a row."
    )
    return Table("Rows and power", ("what", "#value"), tuple(rows), (note,))


def _rows_cell(value: Number) -> Cell:
    if value is None or not known(value):
        return Cell(MISSING, why=UNKNOWN)
    return Cell(f"{value:,.0f}" if value >= 10 else f"{value:.1f}")


def baselines_table(findings: Findings) -> Table:
    """Every shortcut with its interval."""
    rows = tuple(
        (
            Cell(b.name),
            _bounds(b.auroc, signed=False),
            Cell("yes", mark="against") if b.separates else Cell("no", mark="no"),
            Cell(b.note or ""),
        )
        for b in findings.baselines
    )  # fmt: skip
    columns = ("shortcut", "#AUROC", "separates", "note")
    level = level_text(findings.confidence)
    note = f"0.5: tells nothing; 1: tells the sets apart. Brackets: {level} intervals."
    return Table("Shortcuts", columns, rows, (note,))


def forecast_table(findings: Findings, *, most: int | None = None) -> Table:
    """First-order change of every trait, what moves most first.

    Args:
        findings: Where the forecast is from.
        most: Rows to show; None for all.
    """
    forecast = findings.forecast
    traits = forecast.traits if forecast else []
    measured = any(known(row.measured) for row in traits)
    ranked = sorted(traits, key=_size)[:most]
    columns = (
        "trait",
        "#raw",
        "#with Adam",
        *(("#measured, nats",) if measured else ()),
    )
    rows: list[Row] = []
    for row in ranked:
        cells = (Cell(row.trait, mark="yes" if row.trait == findings.trait else ""),
                 _signed(row.raw), _signed(row.adam))  # fmt: skip
        last = (_signed(row.measured, why="not measured"),) if measured else ()
        rows.append((*cells, *last))
    return Table("Forecast", columns, tuple(rows))


def _size(row: ForecastRow) -> float:
    for value in (row.measured, row.adam, row.raw):
        if value is not None and known(value):
            return -abs(value)
    return 0.0


def data_table(findings: Findings) -> Table:
    """What was audited."""
    data = findings.data
    facts: dict[str, object] = {
        "read from": list(data.sources),
        "columns": data.layout,
        "rows read": f"{data.rows:,}",
        "different rows": f"{data.unique:,}",
        "rows audited": f"{data.used:,}",
        "different prompts": f"{data.prompts:,}",
        "completion tokens": f"{data.tokens:,}",
        "of them, recorded as sampled": f"{data.sampled_tokens:,}",
        "rows without an end of their own": f"{data.truncated:,}",
        "rows left out": _counts(data.skipped),
        "hash of the row ids": data.digest,
    }
    if data.subsample:
        facts["how rows were chosen"] = data.subsample
    return facts_table(facts, title="The audited rows")


def reference_table(findings: Findings) -> Table:
    """What they were compared with."""
    reference = findings.reference
    facts: dict[str, object] = {
        "tier": reference.tier,
        "rows": f"{reference.rows:,}",
        "paired by prompt": reference.paired,
        "audited too": f"{reference.shared:,}",
        "how it was sampled": ", ".join(
            f"{k} {_plain(v)}" for k, v in reference.sampler.items()
        )
        or "not known",
        "how that is known": reference.sampler_source,
        "filter": reference.filter,
    }
    if known(reference.accepted):
        facts["share of the base's rows that pass it"] = share_text(reference.accepted)
    return facts_table(facts, title="The reference")


def _plain(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _counts(counts: dict[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return "; ".join(f"{reason}: {count:,}" for reason, count in ranked) or "none"


def seconds_table(findings: Findings) -> Table:
    """Wall-clock time of every part, the longest first."""
    ranked: Sequence[tuple[str, float]] = sorted(
        findings.seconds.items(), key=lambda item: -item[1]
    )
    total = sum(seconds for _, seconds in ranked)
    rows = tuple(
        (
            Cell(name),
            Cell(duration_text(seconds)),
            value_cell(seconds / total if total else None),
        )
        for name, seconds in ranked
    )
    return Table("Time", ("part", "#time", "#share"), rows)
