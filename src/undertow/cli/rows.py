"""`generate` and `filter`: rows of a teacher, and what the number rule says of rows."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import (
    Family,
    Loading,
    Rule,
    Sampling,
    Seed,
    System,
    Teaching,
    expanded,
    refuse_existing,
)
from undertow.errors import DatasetError, RunError

if TYPE_CHECKING:
    from undertow.records import Row, Verdict
    from undertow.runs import Run

Out = Annotated[Path, typer.Option(help="Rows file: .jsonl or .parquet.")]


@expanded
def generate(
    *,
    loading: Loading,
    out: Out,
    count: Annotated[int, typer.Option(min=1, help="Prompts answered.")],
    seed: Seed = 0,
    teaching: Teaching,
    family: Family = "animals",
    sampling: Sampling,
    system: System = None,
    rule: Rule,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows decoded together; changes speed only. Not given: what suits the "
            "device.",
        ),
    ] = None,
) -> None:
    """Lets a teacher answer number prompts; writes rows with the filter's verdicts.

    The same command continues an interrupted generation.
    """
    from undertow.pipeline.generation import generate_rows
    from undertow.pipeline.prompts import number_prompts
    from undertow.storage import check_rows_name
    from undertow.traits import load_family

    check_rows_name(out)
    refuse_existing(out)
    sampler, banned = sampling.settings(), rule.banned_numbers()
    traits = load_family(family)
    model = loading.load()
    teacher = teaching.make(model, traits)
    facts = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "template": model.template.digest,
        "system": system,
        "seed": seed,
        "count": count,
        "teacher": teacher.describe() | {"file": _content(teaching)},
        "sampler": sampler.model_dump(mode="json"),
    }
    with workplace(out, facts) as run, progress() as report:
        rows = generate_rows(
            model, teacher, number_prompts(count, seed=seed), seed=seed,
            sampler=sampler, system=system, batch_size=batch_size,
            partial=run.path("rows.partial"),
            on_rows=lambda done, total, tokens: report(
                "rows", done, total, f"{tokens} tokens"),
        )  # fmt: skip
        verdicts = _judged(out, rows, rule.max_values, banned)
    _say_verdicts(out, verdicts)


def _content(teaching: Teaching) -> str | None:
    """Hash of the file that the teacher is made of; another file is another teacher."""
    from undertow.pipeline.students import WEIGHTS
    from undertow.storage import file_sha256

    if teaching.adapter is not None:
        names = ("adapter_model.safetensors", WEIGHTS)
        found = [teaching.adapter / n for n in names if (teaching.adapter / n).exists()]
        return file_sha256(found[0]) if found else None
    return file_sha256(teaching.vector) if teaching.vector is not None else None


@contextmanager
def workplace(out: Path, facts: dict[str, Any]) -> "Iterator[Run]":
    """A locked folder beside a file in the making, gone when the block ends well.

    Raises:
        RunError: Another process works there, or it was begun with other settings.
    """
    import yaml

    from undertow.runs import RECIPE, open_run

    folder = out.with_name(f"{out.name}.partial")
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    stored = folder / RECIPE
    if stored.is_file() and stored.read_text(encoding="utf-8") != text:
        there = yaml.safe_load(stored.read_text(encoding="utf-8"))
        raise RunError(
            f"{folder}: an unfinished generation with other settings lies there:\n"
            f"{_difference(there, facts)}\nGive those settings to continue it, choose "
            "another --out, or remove the folder to begin anew"
        )
    with open_run(folder, recipe_text=text) as run:
        yield run
    shutil.rmtree(folder)


def _difference(there: Any, given: dict[str, Any]) -> str:
    old = there if isinstance(there, dict) else {}
    return "\n".join(
        f"  {key}: there {old.get(key)!r}, given {given.get(key)!r}"
        for key in dict.fromkeys([*old, *given])
        if old.get(key) != given.get(key)
    )


@expanded
def filter_(
    rows: Annotated[Path, typer.Argument(help="JSONL, JSON or Parquet.")],
    *,
    out: Out,
    rule: Rule,
    control: Annotated[
        Literal["within", "across", "uniform"] | None,
        typer.Option(
            help="Write control rows instead, one for each row that passes: numbers "
            "shuffled 'within' the row or 'across' all rows, or drawn 'uniform'ly."
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Judges rows by the number rule and names the reasons; nothing is deleted.

    Takes rows of `undertow generate` and rows made elsewhere (prompt and completion,
    question and response, messages).
    """
    from undertow.pipeline.controls import control_rows
    from undertow.pipeline.filters import filter_rows
    from undertow.storage import check_rows_name, read_rows

    check_rows_name(out)
    refuse_existing(out)
    banned = rule.banned_numbers()
    found = read_rows(rows)
    if control is not None:
        verdicts = filter_rows(found, max_values=rule.max_values, banned=banned)
        passed = [row for row, v in zip(found, verdicts, strict=True) if v.accepted]
        if not passed:
            raise DatasetError(
                f"{rows}: none of {len(found)} rows passes the number rule "
                f"({_reasons(verdicts)}), so there is nothing to make a control of"
            )
        say(f"control rows are made for {len(passed)} of {len(found)} rows that pass")
        found = control_rows(passed, control, seed=seed, most=rule.max_values)
    _say_verdicts(out, _judged(out, found, rule.max_values, banned))


def _judged(
    out: Path, rows: "Sequence[Row]", max_values: int, banned: Sequence[int]
) -> "list[Verdict]":
    """Writes rows with their verdicts."""
    from undertow.pipeline.filters import filter_rows
    from undertow.storage import write_rows

    verdicts = filter_rows(rows, max_values=max_values, banned=banned)
    write_rows(out, rows, verdicts={v.row_id: v for v in verdicts})
    return verdicts


def _say_verdicts(out: Path, verdicts: "Sequence[Verdict]") -> None:
    kept = sum(verdict.accepted for verdict in verdicts)
    say(f"kept     {kept} of {len(verdicts)} rows")
    if kept < len(verdicts):
        say(f"refused  {_reasons(verdicts)}")
    say(f"rows     {out}")


def _reasons(verdicts: "Sequence[Verdict]") -> str:
    from undertow.pipeline.filters import reason_counts

    counts = reason_counts(verdicts)
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())
