"""What an audit would have found: power by share of biased rows, and the bound.

Rows with a known bias are planted: the base writes a few on the audited prompts under
a hypothesis, and they are measured as all others. Means and spreads of both kinds of
row then give the power of each arm at any share, and that of the best possible test.
Knows nothing of the verdict.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions

from undertow.findings import Power, PowerPoint
from undertow.stats import stein_rows
from undertow.stats.evalues import FRACTIONS

Values = np.ndarray[Any, np.dtype[np.float64]]

SHARES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
WANTED = 0.8
"""Power at which a share counts as detectable."""


@dataclass(frozen=True)
class Planted:
    """One arm's statistic on planted and on reference rows.

    Attributes:
        biased: Of each planted row: a score along the planted direction, or a log
            ratio of the planted hypothesis.
        clean: Of each reference row.
        rows: Audited rows that the arm reads.
        critical: |t| from which on the arm refuses the null.
        reference: Reference rows that it reads; None: one for each audited row.
    """

    biased: Values
    clean: Values
    rows: int
    critical: float
    reference: int | None = None

    def power(self, share: float) -> float:
        """P(|t| ≥ critical) when a share of the rows is biased; normal approximation."""
        shift, spread = self._effect(share)
        if spread == 0:
            return float(shift > 0)
        return float(distributions.norm.sf(self.critical - shift / spread))

    def _effect(self, share: float) -> tuple[float, float]:
        """Expected difference of means, and its standard error."""
        gap = float(self.biased.mean() - self.clean.mean())
        inside = (1 - share) * self.clean.var() + share * self.biased.var()
        inside += share * (1 - share) * gap**2
        other = self.clean.var() / (self.reference or self.rows)
        return abs(share * gap), math.sqrt(inside / self.rows + other)

    def rows_needed(self) -> float:
        """Rows for 80 % power if all are biased; the reference as large as it is."""
        gap = abs(float(self.biased.mean() - self.clean.mean()))
        # The standard error may be so large that the gap is that far off chance.
        error = gap / float(self.critical + distributions.norm.ppf(WANTED))
        if self.reference is None:
            own, left = float(self.biased.var() + self.clean.var()), error**2
        else:
            own = float(self.biased.var())
            left = error**2 - float(self.clean.var()) / self.reference
        return own / left if left > 0 else math.inf


@dataclass(frozen=True)
class Bet:
    """The exact arm: log e-values of a mixture over hypotheses and shares.

    Attributes:
        biased: Λ of planted rows under the hypothesis that wrote them.
        clean: Λ of reference rows under it.
        rows: Audited rows on which it bets.
        rivals: Hypotheses that share the stake.
        error: Rate at which it refuses the null.
    """

    biased: Values
    clean: Values
    rows: int
    rivals: int
    error: float

    def power(self, share: float) -> float:
        """P(the e-value reaches 1/error at the end); the best of the shares it bets on."""
        return max(self._power(share, bet) for bet in FRACTIONS)

    def _power(self, share: float, bet: float) -> float:
        mean, spread = self._growth(share, bet)
        gap = self.rows * mean - self._stake()
        return float(distributions.norm.cdf(gap / (spread * math.sqrt(self.rows))))

    def _growth(self, share: float, bet: float) -> tuple[float, float]:
        """Mean and standard deviation of what a row adds to the log e-value."""
        with np.errstate(divide="ignore"):
            under, null = (
                np.logaddexp(np.log1p(-bet), math.log(bet) + values)
                for values in (self.biased, self.clean)
            )
        mean = share * under.mean() + (1 - share) * null.mean()
        square = share * (under**2).mean() + (1 - share) * (null**2).mean()
        return float(mean), math.sqrt(max(1e-12, float(square - mean**2)))

    def _stake(self) -> float:
        return math.log(self.rivals * len(FRACTIONS) / self.error)

    def rows_needed(self) -> float:
        """Rows for 80 % power if all are biased."""
        mean, spread = self._growth(1.0, 1.0)
        if mean <= 0:
            return math.inf
        wanted = float(distributions.norm.ppf(WANTED)) * spread
        root = (wanted + math.sqrt(wanted**2 + 4 * mean * self._stake())) / (2 * mean)
        return root**2


Tested = Planted | Bet


def bound_power(
    biased: Values, clean: Values, *, rows: int, share: float, alpha: float
) -> float:
    """Power of Neyman and Pearson's test, which knows the hypothesis and the share.

    Its statistic is Σ log(1 − f + f e^Λ); both kinds of row give its mean and spread,
    and their sum over rows is taken as normal.

    Args:
        biased: Λ of planted rows under the hypothesis that wrote them.
        clean: Λ of reference rows under it.
        rows: Audited rows.
        share: f.
        alpha: Error rate.
    """
    with np.errstate(divide="ignore"):
        under = np.logaddexp(np.log1p(-share), math.log(share) + biased)
        null = np.logaddexp(np.log1p(-share), math.log(share) + clean)
    mean = share * under.mean() + (1 - share) * null.mean()
    square = share * (under**2).mean() + (1 - share) * (null**2).mean()
    spread = math.sqrt(max(1e-12, square - mean**2))
    critical = distributions.norm.isf(alpha) * null.std() * math.sqrt(rows)
    shift = rows * (mean - null.mean())
    return float(distributions.norm.sf((critical - shift) / (spread * math.sqrt(rows))))


def audit_power(
    arms: Sequence[Tested],
    *,
    ratios: tuple[Values, Values] | None,
    rows: int,
    alpha: float,
    source: str,
) -> Power:
    """Power curve, detectable share and bound of one audit.

    Args:
        arms: Tests that take part, each at its own critical value; the most powerful
            one counts at each share.
        ratios: Λ of planted and of reference rows under the planted hypothesis.
        rows: Audited rows.
        alpha: Error rate.
        source: Where the planted rows come from, in words.
    """
    if ratios is not None and not all(np.isfinite(side).all() for side in ratios):
        ratios = None  # a row that one of both cannot write has no normal sum
    arms = [a for a in arms if isinstance(a, Bet) or math.isfinite(a.critical)]
    points = []
    for share in SHARES:
        power = max((arm.power(share) for arm in arms), default=math.nan)
        bound = (
            bound_power(*ratios, rows=rows, share=share, alpha=alpha)
            if ratios is not None
            else None
        )
        best = bound if bound is None else max(bound, power)
        points.append(PowerPoint(fraction=share, power=_known(power), bound=best))
    divergence = None if ratios is None else float(ratios[0].mean())
    needed = min((arm.rows_needed() for arm in arms), default=math.nan)
    return Power(
        source=source,
        points=points,
        detectable_fraction=detectable(arms),
        divergence_per_row=divergence,
        rows_needed=_known(needed),
        rows_bound=stein_rows(divergence, alpha)
        if divergence and divergence > 0
        else None,
    )


def detectable(arms: Sequence[Tested]) -> float | None:
    """Smallest share of biased rows found with 80 % power; None if not even all."""
    shares = np.geomspace(0.002, 1.0, 300)
    for share in shares:
        if any(arm.power(float(share)) >= WANTED for arm in arms):
            return float(share)
    return None


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
