"""Settings of an audit: refused where they make no sense, and never changed."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.conftest import family_text

from undertow.audit import settings
from undertow.audit.judgement import WEIGHTS
from undertow.audit.settings import AuditSettings
from undertow.config import check_settings, dump_settings
from undertow.errors import ConfigError
from undertow.stats import cauchy_combination


def test_overrides_reach_the_sampler() -> None:
    found = check_settings(
        AuditSettings, {}, where="audit",
        overrides=["alpha=0.05", "layers=[3, 1]", "sampler.temperature=0.7"],
    )  # fmt: skip
    assert found.alpha == 0.05
    assert found.layers == (3, 1)
    assert found.sampler is not None
    assert found.sampler.temperature == 0.7
    assert found.sampler.allowed == "all"


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as found:
        check_settings(
            AuditSettings, {}, where="audit",
            overrides=["alpha=1.5", "permutation=99", "reference=some", "screening=1"],
        )  # fmt: skip
    assert len(found.value.faults) == 4
    text = str(found.value)
    for part in ("alpha", "permutation", "reference", "screening"):
        assert part in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0), ("alpha", 1), ("permutations", 98), ("max_rows", 0),
        ("personas", 0), ("planted", -1), ("filter", "some"), ("seed", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        AuditSettings.model_validate({name: value})


def test_an_error_rate_that_permutations_cannot_reach_is_refused() -> None:
    share = (WEIGHTS["gradient"] + WEIGHTS["likelihood"]) / sum(WEIGHTS.values())
    assert pytest.approx(1 / share) == settings._ARMS
    with pytest.raises(ValidationError, match="raise permutations to 20999 at least"):
        AuditSettings(alpha=5e-5)
    found = AuditSettings(alpha=5e-5, permutations=20_999)
    floor = 1 / (1 + found.permutations)
    assert cauchy_combination([floor, floor, 0.5], [10, 10, 1]) <= found.alpha
    with pytest.raises(ValidationError, match="cannot give a p-value"):
        AuditSettings(alpha=5e-5, permutations=20_998)


def test_settings_come_back_from_yaml() -> None:
    import yaml

    given = AuditSettings(layers=(1, 2), alpha=0.02)
    text = dump_settings(given)
    assert AuditSettings.model_validate(yaml.safe_load(text)) == given


def test_decoys_are_of_another_family() -> None:
    """A trait that is its own decoy is never told from it, and never named."""
    assert AuditSettings().decoys == "auto"
    assert AuditSettings().decoy_family == "trees"
    assert AuditSettings(family="trees").decoy_family == "animals"
    assert AuditSettings(family="trees", decoys="moods").decoy_family == "moods"
    unread = AuditSettings(family="no-such-family")
    assert unread.decoy_family == "trees", "told when it is read"


def test_decoys_that_are_looked_for_are_refused(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(family_text("mine", "thing", "Which?", Oak="oaks", owl="owls"))
    for family in ("trees", str(own)):
        asked = AuditSettings(family=family, decoys="trees")
        with pytest.raises(ConfigError, match=r"'trees' shares .+ with the family"):
            _ = asked.decoy_family
    assert AuditSettings(family=str(own)).decoy_family == "moods"
