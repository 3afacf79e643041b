"""What stands beside a verdict: what it allows, and what it does not."""

import pytest

from undertow.findings import Bounds, Findings, Tier
from undertow.report.audit_words import Fact, facts, plain_words


def told(findings: Findings) -> dict[str, Fact]:
    return {
        fact.name: Fact(
            fact.name,
            fact.value.replace("\N{NO-BREAK SPACE}", " "),
            fact.note.replace("\N{NO-BREAK SPACE}", " "),
        )
        for fact in facts(findings)
    }


def plain(findings: Findings) -> str:
    return plain_words(findings).replace("\N{NO-BREAK SPACE}", " ")


def test_nothing_found_says_what_would_have_been(none_found: Findings) -> None:
    assert "At an error rate of 1 % nothing was found." in plain(none_found)
    assert "Had 9.8 % of the rows or more been biased" in plain(none_found)
    assert "fewer may be there" in plain(none_found)


def test_nothing_found_by_a_test_of_unknown_power_says_little(
    none_found: Findings,
) -> None:
    blind = none_found.model_copy(update={"detectable_fraction": None})
    assert "a power of 80 %), so that nothing was found says little" in plain(blind)


def test_the_other_verdicts_claim_no_more_than_they_may(
    trait_found: Findings, shift_found: Findings, inconclusive: Findings
) -> None:
    assert "at most 1 % end like this" in plain(trait_found)
    assert "which trait they carry, if any, is not identified" in plain(shift_found)
    assert plain(inconclusive).startswith("Nothing is claimed about these rows")


@pytest.mark.parametrize(
    ("tier", "allows"),
    [
        ("A", "from the base itself"),
        ("B", "what they carry themselves"),
        ("C", "That the rows carry nothing can not."),
    ],
)
def test_each_tier_says_what_it_allows(
    none_found: Findings, tier: Tier, allows: str
) -> None:
    found = told(none_found.model_copy(update={"reference_tier": tier}))["Reference"]
    assert found.value == f"tier {tier}"
    assert allows in found.note


def test_the_numbers_of_a_trait_stand_beside_it(trait_found: Findings) -> None:
    found = told(trait_found)
    assert {name: fact.value for name, fact in found.items()} == {
        "p-value": "1.0×10⁻⁴", "Error rate asked for": "1 %", "Reference": "tier A",
        "Kind": "steered", "Layer": "24", "Strength": "+4.92",
        "Smallest share it would have found": "9.8 %", "Rows audited": "1,000",
    }  # fmt: skip
    assert found["p-value"].note.startswith("at or below")
    assert "95 % interval [+4.11, +5.73]" in found["Strength"].note
    assert "0.31 of the residual's norm" in found["Strength"].note


def test_what_does_not_apply_is_left_out_and_what_is_missing_has_a_reason(
    none_found: Findings, trait_found: Findings, inconclusive: Findings
) -> None:
    assert not {"Kind", "Layer", "Strength"} & set(told(none_found))
    assert told(none_found)["p-value"].note.startswith("above the error rate")
    bare = trait_found.model_copy(
        update={"kind": None, "layer": None, "strength": None, "power": None,
                "detectable_fraction": None}
    )  # fmt: skip
    found = told(bare)
    for name in ("Kind", "Layer", "Strength", "Smallest share it would have found"):
        assert found[name].value == "—"
        assert found[name].note
    assert told(inconclusive)["p-value"] == Fact(
        "p-value", "—", "not computed: no reference"
    )


def test_a_strength_without_bounds_says_so(trait_found: Findings) -> None:
    for interval in (None, Bounds(mean=4.92, low=None, high=None)):
        bare = trait_found.model_copy(update={"strength_interval": interval})
        fact = told(bare)["Strength"]
        assert fact.value == "+4.92"
        assert "no interval" in fact.note
