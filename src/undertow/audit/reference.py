"""What audited rows are compared with: rows of the base, rows of the user, or none.

Tier A: the base answers the same prompts with the same sampler, and what the filter
refuses is drawn again. Tier B: rows that the user trusts. Tier C: none. How rows were
drawn is `audit.sampling`'s business. Knows nothing of tests.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from undertow.errors import DatasetError
from undertow.findings import Tier
from undertow.models.chat import render_prompt, render_row
from undertow.models.loading import Model
from undertow.models.sampling import Sampled, SamplerSettings, sample
from undertow.models.scoring import DrawLikelihood
from undertow.pipeline.filters import number_rule
from undertow.records import Finish, Row

Filter = Literal["numbers", "none"]

ATTEMPTS = 6
"""Draws after which a prompt has no answer that counts."""
GREEDY = "the rows were drawn greedily: the base would always say the same"


@dataclass(frozen=True)
class Passing:
    """Which answers count, on both sides of a comparison.

    Attributes:
        filter: What the audited rows have passed.
        most_tokens: Of a completion, its end included.
        cut: Whether answers that were cut count.
        empty: Whether empty answers count.
    """

    filter: Filter
    most_tokens: int
    cut: bool
    empty: bool

    @classmethod
    def like(
        cls, passed: Filter, *, most_tokens: int, cut: bool, recorded: bool, empty: bool
    ) -> "Passing":
        """What counts beside rows that passed a filter; some may be cut, or empty.

        If no end is `recorded`, and no filter asks for one, they may have been cut.
        """
        unknown = passed == "none" and not recorded
        return cls(passed, most_tokens, cut or unknown, empty)

    def refusal(self, text: str, tokens: int, finish: Finish | None) -> str | None:
        """Why an answer does not count; None if it does."""
        if tokens > self.most_tokens:
            return "longer than the reference may be"
        if finish == "length" and not self.cut:
            return "cut short, as the others are not"
        if not self.empty and not text.strip():
            return "empty completion"
        if self.filter == "numbers" and number_rule(text):
            return "does not pass the others' filter"
        return None


@dataclass(frozen=True)
class Reference:
    """Rows to compare with.

    Attributes:
        tier: "A", "B" or "C".
        rows: The rows, in the order of the audited ones if paired.
        paired: Place of each reference row's partner among the audited rows; empty if
            there are no pairs.
        accepted: Share of the base's own draws that pass the filter; None if unknown.
        shared: Rows that stand in the audited set too.
        notes: What is to be said.
    """

    tier: Tier
    rows: tuple[Row, ...] = ()
    paired: tuple[int, ...] = ()
    accepted: float | None = None
    shared: int = 0
    notes: tuple[str, ...] = field(default=())


def find_filter(rows: Sequence[Row]) -> Filter:
    """Says "numbers" if every row passes the number rule: then somebody filtered by it."""
    return "numbers" if all(not number_rule(r.completion) for r in rows) else "none"


def prompt_digest(row: Row) -> str:
    """16 hexadecimal digits of a row's prompt."""
    content = json.dumps([[m.role, m.content] for m in row.messages])
    return hashlib.sha256(content.encode("ascii")).hexdigest()[:16]


def sampled_reference(
    model: Model,
    rows: Sequence[Row],
    *,
    sampler: SamplerSettings,
    filter: Filter,  # noqa: A002 (the field's word)
    seed: int,
    purpose: str = "reference",
    system: str | None = None,
    persona: str | None = None,
    batch_size: int | None = None,
    passing: Passing | None = None,
    on_rows: Callable[[int, int, int], None] | None = None,
) -> Reference:
    """Tier A: one row of the base for each audited row, on the same prompt.

    Draws that the filter refuses are drawn again, up to six times; a prompt that
    never passes has no partner, nor has one that leaves no room for the longest answer.
    Audited rows are all different, so of several rows on one prompt the base's are too:
    an answer that stands there already is drawn again. So is one that, read again from
    its text as its row is, this sampler could not have written.

    Args:
        model: The base.
        rows: The audited rows.
        sampler: What wrote them.
        filter: What they passed.
        seed: With the prompt's hash, `purpose` and how often the prompt came before
            it decides every draw.
        purpose: Keeps several sets of draws apart.
        system: System setting, as for the audited rows.
        persona: Text of a prompted teacher, for rows that are planted.
        batch_size: Rows decoded together; None: what suits the device.
        passing: Which answers count, as `passing_beside` says of all rows, where these
            are a part of them; None asks these.
        on_rows: Called with (rows found, rows in all, tokens drawn since the last call).
    """
    names = _occurrences(rows)
    passing = passing or passing_beside(rows, filter, sampler)
    prompts = [
        render_prompt(model, row.messages, system=system, trait_prompt=persona)
        for row in rows
    ]
    room = model.context - sampler.max_new_tokens
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
    is_drawable = _drawable(model, sampler, system)
    found: dict[int, Row] = {}
    kept: set[str] = set()
    drawn = 0
    for attempt in range(ATTEMPTS):
        todo = [i for i in fits if i not in found]
        if not todo:
            break

        def take(done: list[tuple[int, Sampled]], todo: list[int] = todo) -> None:
            for place, answer in done:
                row = _row(model, rows[todo[place]], answer)
                why = passing.refusal(row.completion, len(answer.ids), row.finish)
                if why is not None or row.row_id in kept:
                    continue
                row = _as_known(row, rows[todo[place]])
                if is_drawable(row):
                    kept.add(row.row_id)
                    found[todo[place]] = row
            if on_rows is not None:
                on_rows(len(found), len(rows), sum(len(s.ids) for _, s in done))

        sample(
            model, [prompts[i] for i in todo],
            keys=[(purpose, *names[i], attempt) for i in todo], seed=seed,
            sampler=sampler, batch_size=batch_size, on_done=take,
        )  # fmt: skip
        drawn += len(todo)
    pairs = tuple(sorted(found))
    return Reference(
        tier="A", rows=tuple(found[i] for i in pairs), paired=pairs,
        accepted=len(pairs) / drawn if drawn else None,
        notes=without_partner(len(rows) - len(pairs), filter),
    )  # fmt: skip


def _drawable(
    model: Model, sampler: SamplerSettings, system: str | None
) -> Callable[[Row], bool]:
    """Says of a row whether its tokens, recorded or read again, are what could be drawn."""
    likelihood = DrawLikelihood(model, sampler)

    def is_drawable(row: Row) -> bool:
        if row.completion_ids is not None or sampler.allowed == "all":
            return True
        return likelihood.drawn(render_row(model, row, system=system)).is_possible

    return is_drawable


def passing_beside(
    rows: Sequence[Row], passed: Filter, sampler: SamplerSettings
) -> Passing:
    """Which answers of the base count beside these rows."""
    return Passing.like(
        passed, most_tokens=sampler.max_new_tokens,
        cut=any(row.finish == "length" for row in rows),
        recorded=any(row.finish is not None for row in rows),
        empty=any(not row.completion.strip() for row in rows),
    )  # fmt: skip


def without_partner(count: int, passed: Filter) -> tuple[str, ...]:
    """What is to be said of rows that have no reference."""
    note = (
        f"{count} rows have no reference: in {ATTEMPTS} draws the base's answers did "
        f"not pass the filter {passed!r} or stood there already, or the prompt leaves no "
        "room for the longest answer"
    )
    return (note,) if count else ()


def _occurrences(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Each row's prompt, and how many rows before it have the same one."""
    seen: dict[str, int] = {}
    names = []
    for row in rows:
        digest = prompt_digest(row)
        names.append((digest, seen.get(digest, 0)))
        seen[digest] = seen.get(digest, 0) + 1
    return names


def _row(model: Model, like: Row, answer: Sampled) -> Row:
    ends = set(model.end_ids)
    body = [token for token in answer.ids if token not in ends]
    return replace(
        like,
        completion=model.tokenizer.decode(body),
        completion_ids=answer.ids,
        finish=answer.finish,
        provenance={"teacher": "none", "source": "reference"},
    )


def _as_known(row: Row, like: Row) -> Row:
    """The row with no more recorded of it than of its partner.

    Text that is tokenised again gives other tokens than those sampled, so either both
    sides have theirs recorded or neither has.
    """
    ids = None if like.completion_ids is None else row.completion_ids
    return replace(row, completion_ids=ids, finish=like.finish and row.finish)


def trusted_reference(audited: Sequence[Row], trusted: Sequence[Row]) -> Reference:
    """Tier B: the user's rows. Those that stand in the audited set too stay in both.

    Taken out of one side alone they would make two sets of one origin look different,
    since what both have is what is likely.

    Raises:
        DatasetError: All of them do.
    """
    known = {row.row_id for row in audited}
    shared = sum(row.row_id in known for row in trusted)
    if shared == len(trusted):
        raise DatasetError(
            f"reference: all {len(trusted)} rows stand in the audited set too; give "
            "rows of another origin"
        )
    note = (
        f"{shared} reference rows stand in the audited set too; they stay in both, "
        "which makes differences harder to see"
    )
    return Reference("B", tuple(trusted), shared=shared, notes=(note,) * bool(shared))


def sampled_tokens(row: Row, end_ids: Sequence[int]) -> bool:
    """Whether a row's tokens are recorded as sampled, its end token among them."""
    ids = row.completion_ids
    if not ids:
        return False
    return row.finish == "length" or ids[-1] in set(end_ids)


def rows_digest(rows: Sequence[Row]) -> str:
    """16 hexadecimal digits of the different row ids."""
    names = "".join(sorted({row.row_id for row in rows}))
    return hashlib.sha256(names.encode("ascii")).hexdigest()[:16]
