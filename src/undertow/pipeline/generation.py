"""Lets a teacher answer prompts and writes what it says as rows.

Randomness is keyed by the row's place in the run, and finished batches are written
at once, so an interrupted generation continues and ends with the same rows, to the
byte: what a row's company moves, its nats, is not written. Knows nothing of filters or
of what the rows are for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.models.sampling import Sampled, SamplerSettings, sample
from undertow.pipeline.teachers import Teacher
from undertow.records import Finish, Message, Row
from undertow.storage import append_jsonl, read_jsonl


class _Answer(NamedTuple):
    """What is written of a completion."""

    ids: tuple[int, ...]
    finish: Finish


def generate_rows(
    model: Model,
    teacher: Teacher,
    prompts: Sequence[str],
    *,
    seed: int,
    sampler: SamplerSettings,
    system: str | None = None,
    batch_size: int | None = None,
    partial: Path | None = None,
    places: Sequence[int] | None = None,
    on_rows: Callable[[int, int, int], None] | None = None,
) -> list[Row]:
    """One row for each prompt, in order.

    Args:
        model: The base, without the intervention.
        teacher: The intervention.
        prompts: Texts of the user's turn.
        seed: The run's seed; with the prompt's place it decides every draw.
        sampler: How completions are drawn; equal for all teachers of a run.
        system: Explicit system text, or None for what the template does by itself.
        batch_size: Rows decoded together; changes speed only. None: what suits the
            device.
        partial: File for finished batches; a second call continues from it.
        places: Prompts to answer, if not all: the others get no row.
        on_rows: Called with (rows done, rows in all, tokens of the batch).

    Raises:
        DatasetError: A prompt does not fit into the context.
    """
    conversations = [(Message("user", prompt),) for prompt in prompts]
    done = _finished(partial)
    wanted = range(len(prompts)) if places is None else places
    todo = [i for i in wanted if i not in done]
    ids = [
        render_prompt(
            model, conversations[i], system=system, trait_prompt=teacher.prompt
        )
        for i in todo
    ]

    def keep(batch: list[tuple[int, Sampled]]) -> None:
        for place, sampled in batch:
            answer = done[todo[place]] = _Answer(sampled.ids, sampled.finish)
            if partial is not None:
                append_jsonl(partial, _line(todo[place], answer))
        if on_rows is not None:
            on_rows(len(done), len(wanted), sum(len(s.ids) for _, s in batch))

    with teacher.acting(model):
        sample(
            model, ids, keys=[("rows", i) for i in todo], seed=seed,
            sampler=sampler, batch_size=batch_size, on_done=keep,
        )  # fmt: skip
    facts = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        **teacher.describe(),
        "seed": seed,
        "sampler": sampler.model_dump(),
    }
    return [
        _row(model, conversations[i], done[i], {**facts, "prompt": i}) for i in wanted
    ]


def gathered(partial: Path) -> list[Path]:
    """Takes what lies in parts (NAME.A-B.partial) into one file of finished batches.

    Args:
        partial: NAME.partial, which is made if there are parts; answers that it has are
            not taken twice.

    Returns:
        The parts, which are not needed any more.
    """
    parts = _parts(partial)
    known = set(_finished(partial))
    for part in parts:
        for place, answer in _finished(part).items():
            if place not in known:
                append_jsonl(partial, _line(place, answer))
                known.add(place)
    return parts


def answered(partial: Path) -> set[int]:
    """Places of prompts that have an answer, in the file of finished batches or a part."""
    return {place for file in (partial, *_parts(partial)) for place in _finished(file)}


def _parts(partial: Path) -> list[Path]:
    return sorted(partial.parent.glob(f"{partial.stem}.*-*.partial"))


def _line(place: int, answer: _Answer) -> dict[str, Any]:
    return {"prompt": place, "ids": list(answer.ids), "finish": answer.finish}


def _finished(partial: Path | None) -> dict[int, _Answer]:
    if partial is None or not partial.exists():
        return {}
    return {
        line["prompt"]: _Answer(tuple(line["ids"]), line["finish"])
        for line in read_jsonl(partial, tolerate_torn_tail=True)
    }


def _row(
    model: Model,
    messages: tuple[Message, ...],
    answer: _Answer,
    provenance: dict[str, Any],
) -> Row:
    ends = set(model.end_ids)
    body = [token for token in answer.ids if token not in ends]
    return Row(
        messages=messages,
        completion=model.tokenizer.decode(body),
        completion_ids=answer.ids,
        finish=answer.finish,
        provenance=provenance,
    )
