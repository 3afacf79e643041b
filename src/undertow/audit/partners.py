"""The base's own answer to each row's prompt, drawn by the row's name alone.

Unlike `reference`, which sees all rows at once, this knows one row at a time: whoever
reads a row, and beside which others, its partner is the same, and copies share one.
Which answers count is decided by `Passing`, applied to the audited rows as well, so
that under the null the two of a pair could stand in each other's place. An answer that
another prompt's row has, or another row of the prompt, is not drawn again: so partners
repeat as often as the sampler does, and whoever compares has to see whether rows do.
"""

from collections.abc import Sequence

from undertow.audit.reference import ATTEMPTS, Passing
from undertow.models.loading import Model
from undertow.models.sampling import Sampled, SamplerSettings, sample
from undertow.records import Row


def draw_partners(
    model: Model,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    *,
    sampler: SamplerSettings,
    passing: Passing,
    seed: int,
    batch_size: int | None = None,
) -> list[Row | None]:
    """One answer of the base for each row; None if six draws gave none that counts.

    Args:
        model: The base.
        rows: Audited.
        prompts: Of the same rows, as tokens; each has room for the longest answer.
        sampler: What wrote the rows.
        passing: What counts.
        seed: With the row id and the number of the attempt it decides every draw.
        batch_size: Rows decoded together; None: what suits the device.
    """
    names = [row.row_id for row in rows]
    found: list[Row | None] = [None] * len(rows)
    todo = list(range(len(rows)))
    for attempt in range(ATTEMPTS):
        if not todo:
            break
        answers = sample(
            model, [prompts[i] for i in todo],
            keys=[("census partner", names[i], attempt) for i in todo], seed=seed,
            sampler=sampler, batch_size=batch_size,
        )  # fmt: skip
        for place, answer in zip(todo, answers, strict=True):
            found[place] = _partner(model, rows[place], answer, passing)
        todo = [place for place in todo if found[place] is None]
    return found


def _partner(model: Model, like: Row, answer: Sampled, passing: Passing) -> Row | None:
    """The answer as a row with no more recorded of it than of its partner."""
    ends = set(model.end_ids)
    text = model.tokenizer.decode([token for token in answer.ids if token not in ends])
    if passing.refusal(text, len(answer.ids), answer.finish) is not None:
        return None
    known = like.completion_ids is not None
    return Row(
        like.messages, text, completion_ids=answer.ids if known else None,
        finish=answer.finish if like.finish or known else None,
    )  # fmt: skip
