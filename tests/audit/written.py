"""Rows for tests of how rows were drawn: written by a model, or by hand."""

from undertow.models.chat import render_prompt
from undertow.models.loading import Model
from undertow.models.sampling import SamplerSettings, sample
from undertow.records import Message, Row


def written_rows(model: Model, count: int, sampler: SamplerSettings) -> list[Row]:
    """Rows that the model writes, each on a prompt of its own."""
    messages = [(Message("user", f"Go on: {100 + i}"),) for i in range(count)]
    prompts = [render_prompt(model, each) for each in messages]
    answers = sample(
        model, prompts, keys=[(i,) for i in range(count)], seed=9, sampler=sampler
    )
    ends = set(model.end_ids)
    return [
        Row(each, model.tokenizer.decode([t for t in a.ids if t not in ends]),
            completion_ids=a.ids, finish=a.finish)
        for each, a in zip(messages, answers, strict=True)
    ]  # fmt: skip


def hand_row(text: str, prompt: str = "hi") -> Row:
    """A completion and its prompt, as text alone."""
    return Row((Message("user", prompt),), text)
