"""`generate` and `filter`: rows of a teacher, and what rule and judge say of rows."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from undertow.errors import ConfigError, DatasetError, RunError

if TYPE_CHECKING:
    from undertow.models.sampling import SamplerSettings
    from undertow.pipeline.carriers import Carrier
    from undertow.pipeline.judge_settings import JudgeSettings
    from undertow.pipeline.judging import Opinion
    from undertow.records import Row, Verdict
    from undertow.runs import Run
    from undertow.traits import TraitFamily

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
    """Lets a teacher answer a carrier's prompts; writes rows with the rule's verdicts.

    The same command continues an interrupted generation.
    """
    from undertow.storage import check_rows_name
    from undertow.traits import load_family

    check_rows_name(out)
    refuse_existing(out)
    traits = load_family(family)
    teaching.check(traits)
    from undertow.pipeline.generation import generate_rows  # heavy, as what follows

    sampler, carrier = sampling.settings(), rule.carrier()
    _check_drawn(carrier, sampler)
    model = loading.load()
    teacher = teaching.make(model, traits)
    facts = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "template": model.template.digest,
        "system": system,
        "seed": seed,
        "count": count,
        "teacher": teacher.describe() | {"file": content_of(teaching)},
        "sampler": sampler.model_dump(mode="json"),
    }
    if carrier.name != "numbers":
        facts["carrier"] = carrier.name
    with workplace(out, facts) as run, progress() as report:
        rows = generate_rows(
            model, teacher, carrier.prompts(count, seed=seed), seed=seed,
            sampler=sampler, system=system, batch_size=batch_size,
            partial=run.path("rows.partial"),
            on_rows=lambda done, total, tokens: report(
                "rows", done, total, f"{tokens} tokens"),
        )  # fmt: skip
        verdicts = _ruled(rows, carrier, traits)
        _write(out, rows, verdicts)
    _say_verdicts(out, verdicts)


def _check_drawn(carrier: "Carrier", sampler: "SamplerSettings") -> None:
    """Refuses a sampler that draws nothing but numbers where words are asked for."""
    if carrier.name != "numbers" and sampler.allowed != "all":
        fault = (
            f"draws nothing but numbers; rows are to be {carrier.name!r}: give 'all'"
        )
        raise ConfigError(f"--allowed {sampler.allowed!r}", [fault])


def content_of(teaching: Teaching) -> str | None:
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
            f"{folder}: unfinished work with other settings lies there:\n"
            f"{_difference(there, facts)}\nGive those settings to continue it, choose "
            "another name, or remove the folder to begin anew"
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


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Who judges the rows that the rule lets through, and where answers are kept."""

    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL|MODEL",
            help="Also ask a model about every row that passes, and refuse what it "
            "objects to: an OpenAI-compatible endpoint (https://host/v1) or a local "
            "model's name.",
        ),
    ] = None
    judge_model: Annotated[
        str | None, typer.Option(help="The model's name at the endpoint.")
    ] = None
    judge_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="VAR", help="Variable that holds the endpoint's key, if it has one."
        ),
    ] = None
    judge_question: Annotated[
        str | None,
        typer.Option(
            help="What is asked of each row; yes refuses it. Not given: whether it says "
            "or hints at more than it should, or answers nothing."
        ),
    ] = None
    judge_answers: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file of its answers, so that none is asked for twice. Not "
            "given: beside the output."
        ),
    ] = None

    def check(self, out: Path) -> None:
        """Refuses what cannot work, before any work is done.

        Raises:
            ConfigError: Options that do not fit together, or no key in the environment.
        """
        if faults := self._misfits(out):
            raise ConfigError("judge options", faults)
        if self.judge is not None:
            self._settings().check()

    def _misfits(self, out: Path) -> list[str]:
        given = [
            name
            for name in ("model", "key_env", "question", "answers")
            if getattr(self, f"judge_{name}") is not None
        ]
        names = [f"--judge-{name.replace('_', '-')}" for name in given]
        if self.judge is None:
            return [f"{name} needs --judge URL or MODEL" for name in names]
        faults = []
        if not self._is_url:
            faults += [
                f"{name} belongs to an endpoint; --judge names a local model"
                for name in names
                if name in ("--judge-model", "--judge-key-env")
            ]
        elif self.judge_model is None:
            faults.append("--judge URL needs --judge-model, the model's name there")
        if self._answers(out).resolve() == out.resolve():
            faults.append("--judge-answers is the output itself; choose another file")
        return faults

    @property
    def _is_url(self) -> bool:
        return self.judge is not None and "://" in self.judge

    def _settings(self) -> "JudgeSettings":
        from undertow.pipeline.judge_settings import JudgeSettings

        assert self.judge is not None
        return JudgeSettings(
            name=self.judge, model=self.judge_model, key_env=self.judge_key_env,
            question=self.judge_question,
        )  # fmt: skip

    def _answers(self, out: Path) -> Path:
        return self.judge_answers or out.with_name(f"{out.name}.judge.jsonl")

    def added(
        self, out: Path, rows: "Sequence[Row]", verdicts: "list[Verdict]"
    ) -> "list[Verdict]":
        """The verdicts with the judge's; says how many were judged. No judge: as given.

        Raises:
            ModelError: The judge cannot be loaded or asked.
        """
        passed = [r for r, v in zip(rows, verdicts, strict=True) if v.accepted]
        if self.judge is None or not passed:
            return verdicts
        from undertow.pipeline.judge_settings import judged
        from undertow.pipeline.judging import JUDGE_UNCLEAR, JUDGED

        answers = self._answers(out)
        with progress() as report:
            verdicts, found = judged(
                self._settings(), rows, verdicts, answers=answers,
                on_row=lambda done, total: report("judge", done, total, ""),
            )  # fmt: skip
        reasons = Counter(reason for v in verdicts for reason in v.reasons)
        say(
            f"judged   {len(passed)} of {len(rows)} rows: {reasons[JUDGED]} refused, "
            f"{reasons[JUDGE_UNCLEAR]} unclear{self._example(found.opinions)}"
        )
        kept = len(found.opinions) - found.asked
        say(f"answers  {answers}" + (f" ({kept} from before)" if kept else ""))
        return verdicts

    @staticmethod
    def _example(opinions: "Mapping[str, Opinion]") -> str:
        notes = [o.note for o in opinions.values() if o.said == "unclear"]
        return f" (for instance {notes[0]!r})" if notes else ""


@expanded
def filter_(
    rows: Annotated[Path, typer.Argument(help="JSONL, JSON or Parquet.")],
    *,
    out: Out,
    rule: Rule,
    family: Family = "animals",
    control: Annotated[
        Literal["within", "across", "uniform"] | None,
        typer.Option(
            help="Write control rows instead, one for each row that passes: numbers (of "
            "other carriers words) shuffled 'within' the row or 'across' all rows, or "
            "numbers drawn 'uniform'ly."
        ),
    ] = None,
    seed: Seed = 0,
    judging: Judging,
) -> None:
    """Judges rows by a carrier's rule and names the reasons; nothing is deleted.

    Takes rows of `undertow generate` and rows made elsewhere (prompt and completion,
    question and response, messages). With --judge a model is asked about the rows that
    pass (control rows, if those are written); the same command continues where it was
    interrupted.
    """
    from undertow.pipeline.controls import Unit, control_rows
    from undertow.storage import check_rows_name, read_rows
    from undertow.traits import load_family

    check_rows_name(out)
    refuse_existing(out)
    carrier, traits = rule.carrier(), load_family(family)
    unit: Unit = "numbers" if carrier.name == "numbers" else "words"
    if control == "uniform" and unit == "words":
        fault = (
            f"'uniform' draws numbers; rows are {carrier.name!r}: give within or across"
        )
        raise ConfigError("--control", [fault])
    judging.check(out)
    if control is not None and unit == "words" and judging.judge is not None:
        fault = "shuffled words make no sense that a judge could look at; leave it out"
        raise ConfigError("--judge", [fault])
    found = read_rows(rows)
    if control is not None:
        verdicts = _ruled(found, carrier, traits)
        passed = [row for row, v in zip(found, verdicts, strict=True) if v.accepted]
        if not passed:
            raise DatasetError(
                f"{rows}: none of {len(found)} rows passes its rule "
                f"({_reasons(verdicts)}), so there is nothing to make a control of"
            )
        say(f"control rows are made for {len(passed)} of {len(found)} rows that pass")
        found = control_rows(
            passed, control, seed=seed, most=rule.max_values, unit=unit
        )
    if control is not None and unit == "words":
        verdicts = _ruled_words(found, traits)
    else:
        verdicts = _ruled(found, carrier, traits)
    verdicts = judging.added(out, found, verdicts)
    _write(out, found, verdicts)
    _say_verdicts(out, verdicts)


def _ruled_words(rows: "Sequence[Row]", family: "TraitFamily") -> "list[Verdict]":
    """Of shuffled words: no sense is left for a rule, but no trait may be named."""
    from undertow.pipeline.filters import TRAIT_WORD
    from undertow.records import Verdict
    from undertow.traits import trait_words, words_in

    names = trait_words(family)
    return [
        Verdict(row.row_id, (TRAIT_WORD,) if words_in(row.completion, names) else ())
        for row in rows
    ]


def _ruled(
    rows: "Sequence[Row]", carrier: "Carrier", family: "TraitFamily"
) -> "list[Verdict]":
    from undertow.pipeline.carriers import carrier_verdicts
    from undertow.traits import trait_words

    return carrier_verdicts(carrier, rows, words=trait_words(family))


def _write(out: Path, rows: "Sequence[Row]", verdicts: "Sequence[Verdict]") -> None:
    """Writes rows with their verdicts."""
    from undertow.storage import write_rows

    write_rows(out, rows, verdicts={v.row_id: v for v in verdicts})


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
