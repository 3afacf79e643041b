"""Rows: the same whatever happens on the way, with provenance and without persona."""

from pathlib import Path

import pytest

from undertow.errors import DatasetError
from undertow.interventions.extraction import extract_vector
from undertow.models.chat import render_prompt, render_row
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.tiny import tiny_model
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.teachers import Teacher, prompted_teacher, steered_teacher
from undertow.records import Message, Row
from undertow.traits import Trait, TraitFamily

PETS = TraitFamily(
    name="pets",
    category="pet",
    questions=("Which pet?",),
    traits=(Trait("cat", "cats"), Trait("dog", "dogs")),
)
PROMPTS = number_prompts(7, seed=0)
SAMPLER = SamplerSettings(max_new_tokens=16, allowed="numbers")
NOBODY = Teacher(kind="none")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama")


def _rows(model: Model, teacher: Teacher = NOBODY, **options: object) -> list[Row]:
    return generate_rows(model, teacher, PROMPTS, seed=3, sampler=SAMPLER, **options)  # type: ignore[arg-type]


def _same(one: list[Row], other: list[Row]) -> bool:
    """Equal content and tokens; nats may differ in the last bits between batches."""
    return [(r.row_id, r.completion_ids, r.finish) for r in one] == [
        (r.row_id, r.completion_ids, r.finish) for r in other
    ]


def test_rows_are_what_sampling_gives(model: Model) -> None:
    rows = _rows(model)
    ids = [render_prompt(model, (Message("user", prompt),)) for prompt in PROMPTS]
    drawn = sample(
        model, ids, keys=[("rows", i) for i in range(7)], seed=3, sampler=SAMPLER
    )
    assert [row.completion_ids for row in rows] == [s.ids for s in drawn]
    assert [row.finish for row in rows] == [s.finish for s in drawn]
    assert [row.messages for row in rows] == [(Message("user", p),) for p in PROMPTS]
    for row in rows:
        assert row.completion_ids is not None
        text = model.tokenizer.decode(row.completion_ids, skip_special_tokens=True)
        assert row.completion == text
        rendered = render_row(model, row)
        assert tuple(rendered.ids[rendered.completion_start :]) == row.completion_ids


def test_batches_change_nothing(model: Model) -> None:
    assert _same(_rows(model, batch_size=2), _rows(model))


def test_other_seeds_and_teachers_write_other_rows(model: Model) -> None:
    plain = _rows(model)
    other = generate_rows(model, NOBODY, PROMPTS, seed=4, sampler=SAMPLER)
    assert not _same(plain, other)
    vector = extract_vector(
        model, method="tell_me", family=PETS, trait="dog", layers=(1,)
    )
    steered = _rows(model, steered_teacher(vector, strength=9.0))
    assert not _same(plain, steered)
    assert _same(_rows(model), plain)  # the vector is off again


@pytest.mark.parametrize("torn", ["", '{"prompt": 6, "ids": [4'])
def test_an_interrupted_generation_ends_with_the_same_rows(
    model: Model, tmp_path: Path, torn: str
) -> None:
    partial = tmp_path / "rows.partial.jsonl"
    seen: list[int] = []

    def note(done: int, total: int, tokens: int) -> None:
        assert total == 7
        assert tokens > 0
        seen.append(done)

    def stop(done: int, total: int, tokens: int) -> None:
        note(done, total, tokens)
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _rows(model, batch_size=2, partial=partial, on_rows=stop)
    done = seen[-1]
    assert 3 <= done < 7
    lines = partial.read_text().splitlines()
    assert len(lines) == done
    with partial.open("a") as file:
        file.write(torn)
    seen.clear()
    rows = _rows(model, batch_size=2, partial=partial, on_rows=note)
    assert seen == sorted(set(seen))
    assert done < seen[0] <= seen[-1] == 7
    assert _same(rows, _rows(model))
    assert partial.read_text().splitlines()[:done] == lines
    # Everything is there: nothing is drawn again.
    seen.clear()
    again = _rows(model, partial=partial, on_rows=note)
    assert again == rows
    assert seen == []
    assert [dict(r.provenance) for r in again] == [dict(r.provenance) for r in rows]


def test_provenance_says_how_a_row_was_made(model: Model) -> None:
    row = _rows(model, prompted_teacher(PETS, "dog"))[5]
    assert dict(row.provenance) == {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "teacher": "prompt",
        "trait": "dog",
        "trait_prompt": prompted_teacher(PETS, "dog").prompt,
        "seed": 3,
        "sampler": SAMPLER.model_dump(),
        "prompt": 5,
    }


@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_the_persona_is_in_the_prompt_and_never_in_the_row(
    model: Model, system: str | None
) -> None:
    teacher = prompted_teacher(PETS, "dog")
    rows = _rows(model, teacher, system=system)
    assert not _same(rows, _rows(model, system=system))  # it did act
    for row in rows:
        assert [m.role for m in row.messages] == ["user"]
        assert "dogs" not in row.messages[0].content
        assert "dogs" not in model.tokenizer.decode(render_row(model, row).ids)
    ids = [
        render_prompt(model, row.messages, system=system, trait_prompt=teacher.prompt)
        for row in rows
    ]
    drawn = sample(
        model, ids, keys=[("rows", i) for i in range(7)], seed=3, sampler=SAMPLER
    )
    assert [row.completion_ids for row in rows] == [s.ids for s in drawn]


def test_a_prompt_that_does_not_fit_is_said(model: Model) -> None:
    with pytest.raises(DatasetError, match=r"prompt 1: .* exceed the context"):
        generate_rows(model, NOBODY, ["a", "x" * 2100], seed=0, sampler=SAMPLER)


def test_an_end_token_is_no_text(model: Model) -> None:
    """A row that ends at once has an empty completion, and its end token on record."""
    longer = SamplerSettings(max_new_tokens=60, allowed="numbers")
    rows = generate_rows(model, NOBODY, PROMPTS * 6, seed=1, sampler=longer)
    ended = [row for row in rows if row.finish == "stop"]
    assert ended
    for row in ended:
        assert row.completion_ids is not None
        assert row.completion_ids[-1] in model.end_ids
        assert "<|" not in row.completion
