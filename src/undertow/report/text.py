"""Numbers and foreign text as a reader sees them: typographic and honest.

A number that could not be computed is a dash, never 0. Knows nothing of HTML;
`report.html` escapes on top of this.
"""

import math

from undertow.findings import Bounds
from undertow.results import Estimate, Number

MISSING = "—"
Measured = Estimate | Bounds
"""A mean with bounds, of a run or of an audit."""


def known(value: Number) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: Number, *, digits: int = 2, signed: bool = False) -> str:
    """A number with a real minus sign, or the dash."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def digits_for(estimate: Measured, *, least: int = 2, most: int = 4) -> int:
    """Decimals at which no part of an estimate that differs from 0 looks like 0.

    A lower bound of 0.003 has to be told from 0: it decides what is said.
    """
    parts = [v for v in (estimate.mean, estimate.low, estimate.high) if v]
    for digits in range(least, most):
        if all(not math.isfinite(v) or round(v, digits) for v in parts):
            return digits
    return most


def mean_text(estimate: Measured, *, signed: bool = True, least: int = 2) -> str:
    """The mean alone."""
    digits = digits_for(estimate, least=least)
    return number(estimate.mean, digits=digits, signed=signed)


def interval_text(estimate: Measured, *, signed: bool = True, least: int = 2) -> str:
    """The bounds alone, as `[low, high]`; the dash if there are none."""
    if not (known(estimate.low) and known(estimate.high)):
        return MISSING
    digits = digits_for(estimate, least=least)
    low = number(estimate.low, digits=digits, signed=signed)
    high = number(estimate.high, digits=digits, signed=signed)
    return f"[{low}, {high}]"


def estimate_text(estimate: Measured, *, signed: bool = True, least: int = 2) -> str:
    """Mean and bounds in one line; bounds that are missing are said to be."""
    mean = mean_text(estimate, signed=signed, least=least)
    if mean == MISSING:
        return MISSING
    return f"{mean} {interval_text(estimate, signed=signed, least=least)}"


def level_text(confidence: float) -> str:
    """0.95 as `95 %`, with a space that does not break."""
    return f"{100 * confidence:g}\N{NO-BREAK SPACE}%"


def duration_text(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `3 min 20 s` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def shortened(text: str, limit: int) -> str:
    """The text, cut with an ellipsis if it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cell_name(teacher: str, noise: float, trait: str, *, is_noisy: bool) -> str:
    """A cell of the grid: `owl by steer, noise 0.05`.

    `is_noisy` says that some cell has noise, so that a clean one is told apart.
    """
    return f"{trait} by {teacher}{noise_name(noise, is_noisy=is_noisy)}"


def teacher_name(teacher: str, noise: float, *, is_noisy: bool) -> str:
    """A teacher at one noise level: `Teacher: steer, no noise`."""
    return f"Teacher: {teacher}{noise_name(noise, is_noisy=is_noisy)}"


def noise_name(noise: float, *, is_noisy: bool) -> str:
    """What to add to a name for its noise; nothing where no cell has any."""
    if noise:
        return f", noise {noise:g}"
    return ", no noise" if is_noisy else ""


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def scientific(value: float) -> str:
    """A number above 0 as `1.0×10⁻⁴`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_RAISED)}"


def p_text(value: Number) -> str:
    """A p-value with two significant digits: `0.35`, `0.0043`, `1.0×10⁻⁴`.

    One that is too small for a float is not shown as 0: no p-value is.
    """
    if value is None or not math.isfinite(value) or value < 0:
        return MISSING
    if value == 0:
        return "< 10⁻³⁰⁰"
    if value >= 0.1:
        return f"{value:.2f}"
    return scientific(value) if value < 0.001 else f"{value:#.2g}"


def share_text(value: Number) -> str:
    """A share as percent with about two digits: `25 %`, `3.1 %`, `0.05 %`."""
    if value is None or not math.isfinite(value) or value < 0:
        return MISSING
    percent = 100 * value
    if percent >= 1 or percent == 0:
        digits = 0 if percent >= 10 else 1
        shown = f"{percent:.{digits}f}".removesuffix(".0")
    else:
        shown = f"{percent:.2g}" if percent >= 0.001 else scientific(percent)
    return f"{shown}\N{NO-BREAK SPACE}%"


def evalue_text(log_evalue: Number) -> str:
    """An e-value, given by its logarithm in nats: `0.37`, `148`, `3.2×10²³`."""
    if log_evalue is None or not math.isfinite(log_evalue):
        return MISSING
    power = log_evalue / math.log(10)
    if -3 < power < 3:
        return f"{math.exp(log_evalue):.3g}"
    whole = math.floor(power)
    mantissa = f"{10 ** (power - whole):.1f}"
    if mantissa == "10.0":
        mantissa, whole = "1.0", whole + 1
    return f"{mantissa}×10{str(whole).translate(_RAISED)}"
