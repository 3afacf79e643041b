"""Intervals, permutation tests, many p-values, detection and e-values of plain numbers.

`intervals` are of means and ratios, `permutation` is max-T, `multiplicity` is for many
p-values, `detection` says how well two samples can be told apart and `evalues` tests
at any time. Knows nothing of traits, rows or models. What cannot be computed is NaN,
and a p-value is never 0.
"""

from undertow.stats.correlation import (
    LinearFit,
    RankCorrelation,
    linear_fit,
    rank_correlation,
)
from undertow.stats.curves import onset
from undertow.stats.detection import (
    auroc,
    binomial_interval,
    chernoff_from_one,
    chernoff_information,
    rows_to_identify,
    stein_rows,
    true_positive_rate,
)
from undertow.stats.evalues import (
    beaten,
    evalue_p,
    first_crossing,
    log_evalue_path,
    pair_totals,
)
from undertow.stats.intervals import (
    Interval,
    Specificity,
    Vector,
    clustered_interval,
    mean_interval,
    ratio_interval,
    specificity,
    two_way_interval,
)
from undertow.stats.multiplicity import (
    Uniformity,
    benjamini_hochberg,
    benjamini_yekutieli,
    cauchy_combination,
    conformal_p_values,
    ks_uniform,
)
from undertow.stats.permutation import MaxT, paired_max_t, two_sample_max_t

__all__ = [
    "Interval",
    "LinearFit",
    "MaxT",
    "RankCorrelation",
    "Specificity",
    "Uniformity",
    "Vector",
    "auroc",
    "beaten",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "binomial_interval",
    "cauchy_combination",
    "chernoff_from_one",
    "chernoff_information",
    "clustered_interval",
    "conformal_p_values",
    "evalue_p",
    "first_crossing",
    "ks_uniform",
    "linear_fit",
    "log_evalue_path",
    "mean_interval",
    "onset",
    "pair_totals",
    "paired_max_t",
    "rank_correlation",
    "ratio_interval",
    "rows_to_identify",
    "specificity",
    "stein_rows",
    "true_positive_rate",
    "two_sample_max_t",
    "two_way_interval",
]
