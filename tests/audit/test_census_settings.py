"""Settings of a census."""

import pytest
from pydantic import ValidationError

from undertow.audit.census_settings import CensusSettings


def test_values_out_of_range_are_refused() -> None:
    for wrong in ({"flips": 10}, {"alpha": 0}, {"batch_rows": 0}, {"colour": 1}):
        with pytest.raises(ValidationError):
            CensusSettings.model_validate(wrong)


def test_an_error_rate_that_no_p_value_reaches_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"no p-value below 0.005"):
        CensusSettings(flips=199, alpha=0.004)
    assert CensusSettings(flips=199, alpha=0.005).flips == 199


def test_the_smallest_p_value_reaches_the_error_rate() -> None:
    settings = CensusSettings()
    assert 1 / (1 + settings.flips) <= settings.alpha
