"""What each figure of an audit rests on, as the findings have it."""

from undertow.findings import Findings
from undertow.report.audit_captions import audit_captions
from undertow.report.audit_figures import draw_audit_figures
from undertow.report.audit_page import render_audit_report


def test_every_figure_says_its_rows_and_what_its_interval_is_over(
    trait_found: Findings,
) -> None:
    figures = draw_audit_figures(trait_found)
    seeded = trait_found.model_copy(update={"provenance": {"seed": 5}})
    found = audit_captions(seeded, figures)
    assert found.keys() == figures.keys()
    assert len(found) == 7
    page = render_audit_report(seeded)
    assert page.count('class="basis"') == 7
    for basis in found.values():
        assert basis.n in page
    used, reference = trait_found.data.used, trait_found.reference.rows
    both = f"{used:,} audited rows, {reference:,} reference rows"
    assert found["directions"].n == both
    assert found["baselines"].interval.endswith("over rows")
    assert trait_found.max_null is not None
    assert found["null"].n.startswith(f"{both}; {len(trait_found.max_null.draws):,}")
    rows = [each.rows for each in trait_found.hypotheses]
    assert found["hypotheses"].n.startswith(f"{min(rows):,} to {max(rows):,} audited")
    assert {basis.seeds for basis in found.values()} == {"5 alone"}


def test_without_a_reference_or_a_seed_that_is_said(trait_found: Findings) -> None:
    bare = trait_found.model_copy(
        update={
            "reference": trait_found.reference.model_copy(update={"rows": 0}),
            "provenance": {},
        }
    )
    found = audit_captions(bare, ["directions"])["directions"]
    assert found.n.endswith("audited rows without a reference")
    assert found.seeds == "not recorded"
