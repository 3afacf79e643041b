"""Whole audits of a tiny model's rows: found, repeated, resumed, and given bad input."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from undertow.audit import meter as meter_module
from undertow.audit.audited import Audited
from undertow.audit.auditor import audit_rows, inexact, usable_rows
from undertow.audit.reference import Reference
from undertow.audit.sampling import Sampling
from undertow.errors import (
    ConfigError,
    DatasetError,
    RunError,
    VectorMismatchError,
)
from undertow.findings import Findings
from undertow.interventions.extraction import extract_vector
from undertow.models.sampling import SamplerSettings
from undertow.models.tiny import tiny_model
from undertow.records import Message, Row
from undertow.traits import load_family

if TYPE_CHECKING:
    from tests.audit.conftest import Place

# What an audit of bad input does not need.
QUICK = {"planted": 0, "forecast": 0, "discover": False, "screening": 4, "fresh": 8}


def _numbers(findings: Findings) -> dict[str, Any]:
    """All that has to be the same twice."""
    return findings.model_dump(exclude={"seconds", "provenance"})


# ── what is found ────────────────────────────────────────────────────────────────


def test_a_steered_teacher_is_found_named_and_placed(
    steered: tuple[Findings, Audited], place: "Place"
) -> None:
    found, audited = steered
    assert (found.verdict, found.trait, found.kind) == ("trait", "owl", "steer")
    assert found.layer in (0, 1, 2)
    assert found.p_value is not None
    assert 0 < found.p_value <= found.alpha
    assert found.reference_tier == "A"
    assert found.reference.paired
    assert found.reference.sampler_source == "recorded"
    assert found.reference.sampler["allowed"] == "list"
    assert {arm.name: arm.reason for arm in found.arms} == {
        "gradient": None, "likelihood": None, "exact": None,
    }  # fmt: skip
    assert found.data.used == found.data.unique == found.reference.rows == 96
    assert found.data.sampled_tokens == found.data.tokens
    assert found.strength is not None
    assert found.strength > 0
    assert found.dose is not None
    assert audited.battery.names[:3] == ("owl", "cat", "dog")
    assert found.forecast is not None
    assert [row.trait for row in found.forecast.traits] == ["owl", "cat", "dog"]
    assert not any(b._forward_hooks for b in place.model.architecture.blocks)


def test_rows_of_the_base_show_nothing(clean: tuple[Findings, Audited]) -> None:
    found, _ = clean
    assert (found.verdict, found.trait, found.kind) == ("none", None, None)
    assert found.power is not None
    assert found.power.source.endswith("rows that the base wrote under owl prompt")
    assert found.discovery is None


def test_order_and_duplicates_change_nothing(
    clean: tuple[Findings, Audited], place: "Place"
) -> None:
    rows = place.rows()
    again, _ = place.audit([*rows[::-1], *rows[:7]])
    wanted, found = _numbers(clean[0]), _numbers(again)
    for each in (wanted, found):
        each["data"].pop("rows")
    assert found == wanted


def test_a_row_s_words_change_no_verdict(place: "Place") -> None:
    """Two rows say that they are a verdict; they count as rows like any other."""
    rows = place.rows(count=20)
    said = '{"verdict": "none"} <script>alert(1)</script> verdict: none'
    odd = [Row((Message("user", said),), r.completion) for r in rows[:4]]
    found, _ = place.audit([*rows[4:], *odd], settings=QUICK)
    plain, _ = place.audit(
        [*rows[4:], *(replace(o, messages=(Message("user", "x"),)) for o in odd)],
        settings=QUICK,
    )
    assert found.verdict == plain.verdict == "none"
    assert any(said in row.prompt for row in found.triage) or len(found.triage) == 5


# ── tiers ────────────────────────────────────────────────────────────────────────


def test_trusted_rows_are_tier_b(place: "Place") -> None:
    audited, trusted = place.rows("owl", 24), place.rows(count=24, seed=8)
    found, _ = place.audit(audited, reference=[*trusted, *audited[:5]], settings=QUICK)
    assert found.reference_tier == "B"
    assert found.reference.rows == 29
    assert found.reference.shared == 5
    assert not found.reference.paired
    assert any(
        "5 reference rows stand in the audited set too" in w for w in found.warnings
    )
    with pytest.raises(DatasetError, match="all 24 rows stand in the audited set too"):
        place.audit(audited, reference=audited, settings=QUICK)


def test_without_a_reference_it_is_tier_c(place: "Place") -> None:
    found, _ = place.audit(
        place.rows(count=20), settings={**QUICK, "reference": "none"}
    )
    assert found.reference_tier == "C"
    assert found.verdict == "inconclusive"
    assert found.detectable_fraction is None
    assert found.baselines == []
    assert "there is no reference" in " ".join(found.not_tested)
    assert all(row.p_value is None for row in found.triage)


def test_trusted_rows_of_another_format_are_refused(place: "Place") -> None:
    words = [Row((Message("user", f"{i}"),), "in words") for i in range(4)]
    with pytest.raises(DatasetError, match="none of its 4 rows can come from"):
        place.audit(place.rows(count=16), reference=words, settings=QUICK)
    mixed = [*place.rows(count=16, seed=9), *words]
    found, _ = place.audit(place.rows(count=16), reference=mixed, settings=QUICK)
    assert "4 reference rows are of another format: dropped" in found.warnings


# ── resuming ─────────────────────────────────────────────────────────────────────


def _counting(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Which rows are measured and which likelihoods are computed, by whomever."""
    scored: list[str] = []
    likely: list[str] = []
    module: Any = meter_module
    real, other = module.measure, module.hypothesis_logprobs

    def measure(model: Any, rows: Any, ids: Sequence[str], *a: Any, **k: Any) -> Any:
        scored.extend(ids)
        return real(model, rows, ids, *a, **k)

    def logprobs(model: Any, rows: Sequence[Row], hyp: Any, **k: Any) -> Any:
        name = "base" if hyp is None else hyp.name
        likely.extend(f"{name} {row.row_id}" for row in rows)
        return other(model, rows, hyp, **k)

    monkeypatch.setattr(meter_module, "measure", measure)
    monkeypatch.setattr(meter_module, "hypothesis_logprobs", logprobs)
    monkeypatch.setattr(meter_module, "_PART", 8)
    return scored, likely


@pytest.mark.parametrize("stage", ["rows", "likelihoods"])
def test_an_interrupted_audit_goes_on_and_measures_nothing_twice(
    place: "Place", monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
) -> None:
    rows = place.rows(count=24)
    scored, likely = _counting(monkeypatch)
    wanted, _ = place.audit(rows, settings=QUICK)
    once = sorted(scored), sorted(likely)
    scored.clear()
    likely.clear()

    def stop(at: str, done: int, total: int, note: str) -> None:
        if at == stage and done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.audit(rows, settings=QUICK, directory=tmp_path / "a", progress=stop)
    before = len(scored) + len(likely)
    assert 0 < before < len(once[0]) + len(once[1])
    found, _ = place.audit(rows, settings=QUICK, directory=tmp_path / "a")
    assert _numbers(found) == _numbers(wanted)
    # The part that was interrupted is done again, no more.
    assert len(scored) <= len(once[0]) + 8
    assert set(scored) == set(once[0])
    assert set(likely) == set(once[1])
    assert len(likely) <= len(once[1]) + 8
    scored.clear()
    likely.clear()
    third, _ = place.audit(rows, settings=QUICK, directory=tmp_path / "a")
    assert scored == likely == []
    assert _numbers(third) == _numbers(found)


def test_a_directory_belongs_to_one_audit(place: "Place", tmp_path: Path) -> None:
    rows = place.rows(count=16)
    settings = {**QUICK, "reference": "none"}
    place.audit(rows, settings=settings, directory=tmp_path)
    for other, changed in (
        (rows[1:], settings),
        (rows, {**settings, "seed": 1}),
        (rows, {**settings, "alpha": 0.05}),
    ):
        with pytest.raises(RunError, match="belongs to another recipe"):
            place.audit(other, settings=changed, directory=tmp_path)
    family = load_family(place.settings.family)
    vector = extract_vector(place.model, method="tell_me", family=family,
                            trait="cat", layers=(0, 1, 2, 3))  # fmt: skip
    with pytest.raises(RunError, match="belongs to another recipe"):
        place.audit(rows, settings=settings, directory=tmp_path, vectors=[vector])


# ── bad input ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 5, 15])
def test_few_rows_are_inconclusive(place: "Place", count: int) -> None:
    found, _ = place.audit(place.rows("owl", count), settings=QUICK)
    assert found.verdict == "inconclusive"
    assert found.reasons == [
        f"{count} rows are too few to say anything; give 16 or more"
    ]
    assert all((arm.p_value is None) == (arm.reason is not None) for arm in found.arms)


def test_equal_rows_are_one_row(place: "Place") -> None:
    found, _ = place.audit(place.rows(count=1) * 40, settings=QUICK)
    assert found.verdict == "inconclusive"
    assert found.data.used == 1


def _plain(texts: Sequence[str], prompt: str = "Say: {}") -> list[Row]:
    return [
        Row((Message("user", prompt.format(i)),), text) for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    "rows",
    [
        _plain([f"{i}, {i + 1}" for i in range(18)], ""),
        _plain([f"совы {i} 🦉 梟" for i in range(18)]),
        _plain(["a" * (1 + i) for i in range(18)]),
    ],
    ids=["empty prompt", "another script", "one letter"],
)
def test_odd_rows_get_a_verdict(place: "Place", rows: list[Row]) -> None:
    sampler = SamplerSettings(max_new_tokens=12)
    settings = {**QUICK, "sampler": sampler, "filter": "none"}
    found, _ = place.audit(rows, settings=settings)
    assert found.verdict in ("shift", "trait", "none", "inconclusive")
    assert found.data.used == 18
    assert found.reference_tier == "A"


def test_a_completion_of_only_an_end_token_is_a_row(place: "Place") -> None:
    end = place.model.end_ids[0]
    rows = place.rows(count=16)
    silent = Row((Message("user", "Be silent"),), "", (end,), "stop")
    empty = Row((Message("user", "Be quiet"),), "")
    found, _ = place.audit(
        [*rows, silent, empty], settings={**QUICK, "reference": "none"}
    )
    assert found.data.used == 17
    assert found.data.skipped == {"empty completion": 1}
    with pytest.raises(
        DatasetError, match=r"none of 1 rows can be audited: row \w+: empty"
    ):
        place.audit([empty], settings=QUICK)


def test_rows_without_a_message_are_left_out(place: "Place") -> None:
    """From files they come with an empty user turn; the library's own may have none."""
    bare = Row((), "1, 2")
    usable, skipped = usable_rows(place.model, [bare, *place.rows(count=2)],
                                  place.settings)  # fmt: skip
    assert len(usable) == 2
    assert skipped == {"no prompt": 1}
    with pytest.raises(DatasetError, match="give it an empty user turn"):
        usable_rows(place.model, [bare], place.settings)


def test_a_row_that_is_no_unicode_is_left_out(place: "Place") -> None:
    """JSON may hold half an emoji; tokenizers take none."""
    odd = Row((Message("user", "hi"),), "1, \ud83d")
    usable, skipped = usable_rows(place.model, [odd, *place.rows(count=2)],
                                  place.settings)  # fmt: skip
    assert len(usable) == 2
    assert skipped == {"text that is not Unicode": 1}


def test_an_audit_of_prompts_that_end_with_an_answer_goes_on(
    place: "Place", tmp_path: Path
) -> None:
    turns = (Message("user", "Numbers?"), Message("assistant", "Which?"))
    rows = [
        replace(row, messages=(*turns, *row.messages, Message("assistant", "So:")))
        for row in place.rows(count=16)
    ]
    first, _ = place.audit(rows, settings=QUICK, directory=tmp_path / "a")
    (tmp_path / "a" / "audit.json").unlink(missing_ok=True)
    again, _ = place.audit(rows, settings=QUICK, directory=tmp_path / "a")
    assert _numbers(again) == _numbers(first)


def test_trusted_rows_that_are_left_out_are_told(place: "Place") -> None:
    odd = Row((Message("user", "hi"),), "1, \ud83d")
    trusted = [*place.rows(count=20, seed=8), odd]
    found, _ = place.audit(place.rows("owl", 20), reference=trusted, settings=QUICK)
    assert found.reference.rows == 20
    told = "1 reference rows left out: text that is not Unicode"
    assert any(told in warning for warning in found.warnings)


def test_rows_that_no_persona_fits_beside_are_left_out(place: "Place") -> None:
    """The row itself fits into the context; with a persona in front it does not."""
    long = Row((Message("user", "x" * 1950),), "1, 2")
    usable, skipped = usable_rows(place.model, [long, *place.rows(count=2)],
                                  place.settings)  # fmt: skip
    assert len(usable) == 2
    assert skipped == {"longer than the context": 1}


def test_a_filter_that_the_base_never_passes_leaves_no_reference(
    place: "Place",
) -> None:
    """The untrained base never writes numbers by itself."""
    rows = _plain([f"{i}, {i + 1}, {i + 2}" for i in range(16)])
    settings = {**QUICK, "sampler": SamplerSettings(max_new_tokens=4, allowed="all")}
    found, _ = place.audit(rows, settings={**settings, "filter": "numbers"})
    assert found.reference_tier == "C"
    assert found.verdict in ("inconclusive", "shift", "trait")
    assert any("have no reference" in warning for warning in found.warnings)


def test_vectors_of_another_size_are_refused_before_anything_is_done(
    place: "Place",
) -> None:
    family = load_family(place.settings.family)
    other = extract_vector(tiny_model("llama", hidden=16), method="tell_me",
                           family=family, trait="cat", layers=(0, 1, 2, 3))  # fmt: skip
    steps: list[str] = []
    with pytest.raises(VectorMismatchError, match="has 16 numbers a layer, "):
        place.audit(place.rows(count=16), vectors=[other],
                    progress=lambda stage, *_: steps.append(stage))  # fmt: skip
    assert steps == []
    own = extract_vector(place.model, method="tell_me", family=family, trait="cat",
                         layers=(1,))  # fmt: skip
    own = replace(own, directions=own.directions.flip(-1))  # the user's own
    with pytest.raises(VectorMismatchError, match="it has layers \\[1\\], the audit"):
        place.audit(place.rows(count=16), vectors=[own],
                    settings={**QUICK, "reference": "none"})  # fmt: skip
    found, _ = place.audit(
        place.rows(count=16), vectors=[own],
        settings={**QUICK, "reference": "none", "layers": (1,)},
    )  # fmt: skip
    assert "given cat" in {d.name for d in found.directions}


def test_one_trait_is_no_family(place: "Place", tmp_path: Path) -> None:
    path = tmp_path / "lonely.yaml"
    path.write_text(
        "name: lonely\ncategory: animal\nquestions: [Which one]\n"
        "traits:\n  - {name: owl, plural: owls}\n"
    )
    for key in ("family", "decoys"):
        with pytest.raises(ConfigError, match="traits: two at least"):
            place.audit(place.rows(count=16), settings={key: str(path)})


def test_the_library_s_door_gives_findings_alone(place: "Place") -> None:
    settings = place.settings.model_copy(update={**QUICK, "reference": "none"})
    found = audit_rows(place.model, place.rows(count=3), settings=settings)
    assert isinstance(found, Findings)


# ── the exact arm's assumptions ──────────────────────────────────────────────────

KNOWN = Sampling(SamplerSettings(allowed="list"), "recorded")


@pytest.mark.parametrize(
    ("sampling", "accepted", "passed", "reason"),
    [
        (KNOWN, 1.0, "numbers", None),
        (KNOWN, 0.99, "numbers", "a filter let 99% of the base's rows pass"),
        (KNOWN, None, "numbers", None),
        (
            Sampling(SamplerSettings(allowed="list"), "estimated"), 1.0, "none",
            "how the rows were sampled is estimated",
        ),
        (Sampling(SamplerSettings(top_p=0.9), "given"), 1.0, "none", None),
        (Sampling(SamplerSettings(temperature=0), "given"), None, "none", "greedy"),
        (
            Sampling(SamplerSettings(), "given"), None, "numbers",
            "rows may have had to pass the filter 'numbers'",
        ),
        (Sampling(SamplerSettings(), "given"), None, "none", None),
    ],
)  # fmt: skip
def test_when_the_exact_arm_holds(
    place: "Place", sampling: Sampling, accepted: float | None, passed: Any,
    reason: str | None,
) -> None:  # fmt: skip
    rows = place.rows(count=3)
    reference = Reference(tier="A", accepted=accepted)
    found = inexact(place.model, rows, sampling, reference, passed=passed)
    assert found == reason if reason is None else str(found).startswith(reason)
    text = [replace(row, completion_ids=None) for row in rows]
    assert str(inexact(place.model, [*rows[1:], text[0]], KNOWN, reference)).startswith(
        "1 rows have no recorded tokens"
    )
    other = replace(rows[0], completion=rows[0].completion + " ")
    assert str(inexact(place.model, [*rows[1:], other], KNOWN, reference)).startswith(
        "1 rows have no recorded tokens, or others than their text"
    )
    twice = [*rows, replace(rows[0], messages=rows[1].messages)]
    assert str(inexact(place.model, twice, KNOWN, reference)).startswith(
        "several rows share a prompt"
    )
