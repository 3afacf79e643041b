"""Settings of a census."""

import pytest
from pydantic import ValidationError

from undertow.audit.census_settings import CensusSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [("flips", 98), ("flips", 10_000), ("alpha", 0), ("batch_rows", 0), ("pilot", 7),
     ("shard_batches", 0), ("subsample", 15), ("dose", 0), ("top", -1), ("colour", 1)],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValidationError) as error:
        CensusSettings.model_validate({name: value})
    assert [each["loc"] for each in error.value.errors()] == [(name,)]


def test_an_error_rate_that_no_p_value_reaches_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"no p-value below 0.005"):
        CensusSettings(flips=199, alpha=0.004)
    assert CensusSettings(flips=199, alpha=0.005).flips == 199
