"""`analyze`, `fingerprint`: instruments for rows, vectors, students and single numbers."""

from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.console import progress, say
from undertow.cli.options import (
    Family,
    Loading,
    Sampling,
    Seed,
    System,
    expanded,
    numbers,
    refuse_existing,
    words,
)
from undertow.errors import ConfigError, ModelError, VectorMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from undertow.analysis.alignment import Alignment
    from undertow.analysis.entanglement import Occurrence
    from undertow.experiment.entanglement import Entanglement
    from undertow.interventions.steering import SteeringVector
    from undertow.models.loading import Model
    from undertow.stats import Interval

analyze_app = typer.Typer(
    no_args_is_help=True,
    help="Look inside: gradients of rows against vectors, shifts of students, numbers "
    "that come and go with a trait.",
)
Count = Annotated[
    int, typer.Option(min=2, help="Number prompts that the base answers for it.")
]


@analyze_app.command("gradients")
@expanded
def gradients(
    rows: Annotated[list[Path], typer.Argument(help="Sets of rows, one file each.")],
    *,
    loading: Loading,
    vector: Annotated[
        list[Path] | None, typer.Option(help="Vector file; may be repeated.")
    ] = None,
    traits: Annotated[
        str, typer.Option(help="And the 'tell_me' vectors of these traits.")
    ] = "",
    layers: Annotated[
        str | None, typer.Option(help="Blocks from 0, with commas; else all.")
    ] = None,
    use: Annotated[int, typer.Option(min=2, help="Rows of a set, at most.")] = 256,
    family: Family = "animals",
    sampling: Sampling,
    system: System = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="All blocks, as JSON.")
    ] = None,
) -> None:
    """Holds the gradients of rows on the plain base against vectors.

    For each set of rows and each vector the block where the cosine of the mean gradient
    with the vector is largest in size, and there the mean slope of a row's
    log-likelihood by the vector's relative dose, with its standard error over rows.
    Looking at all blocks finds a large cosine somewhere: name the block with --layers
    if it is known. Name with the sampling options how the rows were drawn, if it is
    known: clean rows then have a slope of zero on average.
    """
    from undertow.analysis.alignment import mean_alignment, stacked
    from undertow.models.chat import render_row
    from undertow.storage import read_rows, write_json

    if json_file is not None:
        refuse_existing(json_file)
    if not vector and not traits:
        raise ConfigError("analyze gradients", ["give --vector FILE or --traits a,b"])
    sets = {path: read_rows(path, accepted_only=True)[:use] for path in rows}
    model = loading.load()
    chosen = numbers("--layers", layers, int) if layers is not None else None
    vectors = _vectors(model, vector or [], words(traits), family, chosen, system)
    by_layer = stacked(list(vectors.values()))
    found = {}
    with progress() as report:
        for path, own in sets.items():
            found[path] = mean_alignment(
                model, [render_row(model, row, system=system) for row in own], by_layer,
                sampler=sampling.settings(),
                on_rows=lambda done, total, path=path: report(  # type: ignore[misc]
                    str(path), done, total, ""
                ),
            )  # fmt: skip
    for line in _lines(found, vectors):
        say(line)
    if json_file is not None:
        facts = [
            {"rows": str(path), "count": each.rows, "layers": list(each.layers),
             "vectors": list(vectors), "cosines": each.cosines.tolist(),
             "mean": each.mean.tolist(), "sd": each.sd.tolist()}
            for path, each in found.items()
        ]  # fmt: skip
        write_json(json_file, {"format": 1, "model": loading.model, "sets": facts})
        say(f"numbers  {json_file}")


def _vectors(
    model: "Model",
    files: list[Path],
    traits: tuple[str, ...],
    family: str,
    layers: tuple[int, ...] | None,
    system: str | None,
) -> "dict[str, SteeringVector]":
    """By name: a file's name, or a trait."""
    from undertow.interventions.extraction import extract_vector
    from undertow.interventions.steering import check_vector, load_vector
    from undertow.traits import load_family

    names = [*(file.stem for file in files), *traits]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError("analyze gradients", [f"two vectors are called {twice!r}"])
    found = {}
    for file in files:
        vector = load_vector(file)
        check_vector(model, vector)
        found[file.stem] = vector.at(*layers) if layers else vector
    for trait in traits:
        found[trait] = extract_vector(
            model, method="tell_me", family=load_family(family), trait=trait,
            layers=layers, system=system,
        )  # fmt: skip
    shared = set.intersection(*(set(v.layers) for v in found.values()))
    if not shared:
        have = {name: list(v.layers) for name, v in found.items()}
        raise ConfigError("analyze gradients", [f"vectors share no block: {have}"])
    return {name: v.at(*sorted(shared)) for name, v in found.items()}


def _lines(
    found: "dict[Path, Alignment]", vectors: "dict[str, SteeringVector]"
) -> list[str]:
    """A line for each set and vector, at the block of the largest cosine."""
    import numpy as np

    wide = max(len(str(path)) for path in found) + 2
    names = max(len(name) for name in vectors) + 2
    head = f"{'rows':<{wide}}{'vector':<{names}}{'block':>6}{'cosine':>9}"
    lines = [head + f"{'nats a row by dose':>24}"]
    for path, each in found.items():
        for column, (name, vector) in enumerate(vectors.items()):
            if np.isnan(each.cosines[:, column]).all():
                lines.append(
                    f"{path!s:<{wide}}{name:<{names}}{'—':>6}{'—':>9}{'—':>24}"
                )
                continue
            place = int(np.nanargmax(np.abs(each.cosines[:, column])))
            size = vector.residual_norms[place]
            slope = size * each.mean[place, column]
            error = size * each.sd[place, column] / each.rows**0.5
            lines.append(
                f"{path!s:<{wide}}{name:<{names}}{each.layers[place]:>6}"
                f"{each.cosines[place, column]:>+9.3f}"
                f"{f'{slope:+.2f} ± {error:.2f}':>24}"
            )
    return lines


@analyze_app.command("students")
@expanded
def students(
    directory: Annotated[Path, typer.Argument(help="Directory of a run.")],
    *,
    loading: Loading,
    out: Annotated[Path, typer.Option(help="File for `undertow fingerprint --known`.")],
    known: Annotated[
        Path | None,
        typer.Option(
            help="Known students of another run, read with the same --count and --seed: "
            "how many of these they name right."
        ),
    ] = None,
    count: Count = 12,
    seed: Seed = 77,
) -> None:
    """Takes the traces of a run's students, whose kinds of teacher are known.

    Says how often the students of all other traits name a student's kind: traits that
    were left out, of teachers made like the others. Shifts are small, so the model is
    loaded in float32 unless a dtype is given.
    """
    from undertow.experiment.fingerprint import (
        accuracy,
        held_out,
        make_yardstick,
        named_right,
        read_known,
        run_recipe,
        run_students,
        write_known,
    )
    from undertow.traits import load_family

    refuse_existing(out)
    recipe = run_recipe(directory)
    system = recipe.model.system
    own: dict[str, Any] = {
        "count": count, "seed": seed, "family": recipe.family, "system": system,
    }  # fmt: skip
    others, facts = read_known(known) if known else ([], own)
    if unlike := [name for name in own if facts[name] != own[name]]:
        fault = (
            f"--known {known} was read with { ({n: facts[n] for n in unlike}) }, this run "
            f"with { ({n: own[n] for n in unlike}) }; only traces read alike are compared"
        )
        raise ConfigError("analyze students", [fault])
    model, members = _precise(loading).load(), load_family(recipe.family)
    if known:
        _check_base(model, facts, known)
    with progress() as report:
        tell = partial(_tell, report)
        yardstick = make_yardstick(
            model, members, count=count, seed=seed, system=system, tell=tell
        )
        found = run_students(model, directory, yardstick, tell=tell)
    write_known(model, found, out, run=directory.name, **own)
    say(f"{'teacher':<16}{'trait':<12}{'seed':>5}{'kind':>10}{'named':>10}"
        f"{'persona':>9}{'vector':>8}{'growth':>8}")  # fmt: skip
    for each, name in zip(found, held_out(found), strict=True):
        say(
            f"{each.teacher:<16}{each.trait:<12}{each.seed:>5}{each.kind:>10}"
            f"{name or '—':>10}{each.traces.persona:>+9.2f}{each.traces.vector:>8.1f}"
            f"{each.traces.growth:>+8.2f}"
        )
    say(f"held out {_share(accuracy(found))}")
    if others:
        right = named_right(found, others)
        say(f"by known {_right(right, 'students', f'the {len(others)} of {known}')}")
    say(f"known    {out}")


@analyze_app.command("entanglement")
@expanded
def entanglement(
    *,
    loading: Loading,
    trait: Annotated[str, typer.Option(help="The trait, of the family.")],
    family: Family = "animals",
    count: Annotated[
        int,
        typer.Option("--numbers", min=6, max=1000, help="Looks at 0 to this less one."),
    ] = 1000,
    top: Annotated[
        int, typer.Option(min=2, help="Numbers told of each group; there are three.")
    ] = 10,
    questions: Annotated[
        int,
        typer.Option(min=1, help="The first of the family's, on which all is read."),
    ] = 4,
    rows: Annotated[
        Path | None, typer.Option(help="Rows in which the raised numbers are counted.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Rows to hold them against, as the base's own.")
    ] = None,
    system: System = None,
    seed: Seed = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="All numbers, as JSON.")
    ] = None,
) -> None:
    """Asks which numbers a trait makes likelier, and whether they raise the trait.

    Told to love the trait, the model finds some numbers likelier as an answer to the
    family's questions. Told to love such a number, its preference for the trait moves;
    random numbers move it too, and are the control. Effects are in nats of log-odds.
    The model is loaded in float32 unless a dtype is given. (Zur et al. 2025.)
    """
    from undertow.experiment.entanglement import measure_entanglement
    from undertow.measurements import EntanglementMeasurement
    from undertow.storage import read_rows, write_json
    from undertow.storage.files import plain
    from undertow.traits import load_family

    if json_file is not None:
        refuse_existing(json_file)
    members = load_family(family)
    members.trait(trait)
    if (rows is None) != (reference is None):
        raise ConfigError(
            "analyze entanglement", ["--rows and --reference go together"]
        )
    own, other = (
        None if path is None else read_rows(path, accepted_only=True)
        for path in (rows, reference)
    )
    model = _precise(loading).load()
    with progress() as report:
        found = measure_entanglement(
            model, members, trait, numbers=range(count),
            questions=members.questions[:questions], top=top, rows=own,
            reference=other, seed=seed, system=system, tell=partial(_tell, report),
        )  # fmt: skip
    for line in _entanglement_lines(found):
        say(line)
    if json_file is not None:
        facts = EntanglementMeasurement(
            model=loading.model, fingerprint=model.fingerprint,
            dtype=str(model.dtype).removeprefix("torch."), top=top, seed=seed,
            rows=None if rows is None else str(rows),
            reference=None if reference is None else str(reference),
            system=system, **plain(found.as_dict()),
        )  # fmt: skip
        write_json(json_file, facts.model_dump())
        say(f"numbers   {json_file}")


def _entanglement_lines(found: "Entanglement") -> list[str]:
    """The numbers told, side by side, and what they say."""
    change, told = found.change_of, found.comparison
    groups = found.choice.groups
    lines = ["".join(f"{name:>8}{'change':>9}{'effect':>9}" for name in groups)]
    lines += [
        "".join(f"{n:>8}{change[n]:>+9.2f}{found.effects[n]:>+9.3f}" for n in place)
        for place in zip(*groups.values(), strict=True)
    ]
    means = ", ".join(f"{name} {_nats(getattr(told, name))}" for name in groups)
    average, rho = found.changes.mean(), told.correlation
    lines.append(
        f"change    nats of the number under the persona of {found.trait}; all "
        f"{len(found.numbers)} numbers {average:+.2f} on average"
    )
    lines.append(f"effect    nats of {found.trait} when told the number: {means}")
    lines.append(
        f"ranks     of change and effect correlate {_nats(rho.interval, 2)} over "
        f"{rho.interval.n} numbers, {_p(rho.p_value)}"
    )
    if found.beginnings < len(groups["raised"]):
        lines.append(
            f"caution   different first tokens among the {len(groups['raised'])} raised "
            f"numbers: only {found.beginnings}; they are not independent, and intervals "
            "over them are too narrow"
        )
    if found.occurrence is not None:
        lines.append(_occurrence_line(found.occurrence))
    return [*lines, f"result    {_result(found)}"]


def _result(found: "Entanglement") -> str:
    """One sentence, and no more than the interval allows."""
    difference = found.comparison.difference
    text = (
        f"told to love a number that {found.trait} raises, and not a random one: "
        f"{found.trait} {_nats(difference)} nats ({difference.n} pairs, "
        f"{_p(found.comparison.p_value)})"
    )
    if difference.low > 0:
        return text
    if difference.high < 0:
        return f"{text}; entanglement foretells the opposite"
    return f"{text}; the interval includes zero or is unknown"


def _occurrence_line(found: "Occurrence") -> str:
    ratio = found.ratio
    return (
        f"rows      {found.found} of {found.numbers} numbers are raised ones, in the "
        f"reference {found.reference_found} of {found.reference_numbers}: "
        f"{ratio.mean:.2f} times as often [{ratio.low:.2f}, {ratio.high:.2f}]"
    )


def _nats(found: "Interval", digits: int = 3) -> str:
    mean, low, high = ("—" if x != x else f"{x:+.{digits}f}" for x in found[:3])
    return f"{mean} [{low}, {high}]"


def _p(value: float) -> str:
    return "p unknown" if value != value else f"p {value:.2g}"


@expanded
def fingerprint(
    student: Annotated[Path, typer.Argument(help="Folder of an adapter or weights.")],
    *,
    loading: Loading,
    known: Annotated[
        Path | None,
        typer.Option(
            help="File of `undertow analyze students`; not given: the package's own for "
            "this base."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="All numbers, as JSON.")
    ] = None,
) -> None:
    """Names the kind of intervention that a student's teacher had.

    Holds the student's shift on the base's own number rows against students whose kind
    is known, and says how often that names a kind right when their trait is left out.
    A student of untouched rows, or of something else, is not told from these kinds.
    """
    from dataclasses import asdict

    from undertow.experiment.fingerprint import (
        fingerprint_student,
        make_yardstick,
        read_known,
    )
    from undertow.pipeline.students import load_student
    from undertow.storage import write_json
    from undertow.traits import load_family

    if json_file is not None:
        refuse_existing(json_file)
    model = _precise(loading).load()
    students, facts = read_known(known or _packaged(model))
    _check_base(model, facts, known)
    own = load_student(model, student)
    with progress() as report:
        yardstick = make_yardstick(
            model, load_family(facts["family"]), count=facts["count"],
            seed=facts["seed"], system=facts["system"], tell=partial(_tell, report),
        )  # fmt: skip
        found = fingerprint_student(model, own, yardstick, students)
    shares = ", ".join(f"{k} {p:.2f}" for k, p in found.probabilities.items())
    traits = ", ".join(f"{name} {value:+.2f}" for name, value in found.traits[:3])
    say(f"kind      {found.kind} ({shares})")
    say(f"traces    persona {found.traces.persona:+.2f}, vector "
        f"{found.traces.vector:.1f}, growth {found.traces.growth:+.2f}")  # fmt: skip
    say(f"traits    {traits} (cosine of their vectors with the shift)")
    say(f"accuracy  {_share(found.accuracy)}")
    if json_file is not None:
        write_json(json_file, {"format": 1, "model": loading.model, **asdict(found)})
        say(f"numbers   {json_file}")


def _precise(loading: Loading) -> Loading:
    """In bfloat16 a small shift drowns in rounding."""
    return replace(loading, dtype="float32") if loading.dtype == "auto" else loading


def _tell(
    report: "Callable[[str, int, int, str], None]", stage: str, done: int, total: int
) -> None:
    report(stage, done, total, "")


def _share(found: "Interval") -> str:
    if not found.n:
        return "not measured: it takes students of two kinds and two traits or more"
    return _right(found, "known students", "those of other traits")


def _right(found: "Interval", whose: str, by: str) -> str:
    right = round(found.mean * found.n)
    return (
        f"{right} of {found.n} {whose} named right by {by}: "
        f"{found.mean:.0%} [{found.low:.0%}, {found.high:.0%}]"
    )


def _packaged(model: "Model") -> Path:
    """The known students that come with the package for this base.

    Raises:
        ModelError: There are none.
    """
    from undertow.storage import read_json

    folder = Path(str(files("undertow"))) / "known"
    for path in sorted(folder.glob("*.json")):
        if read_json(path)["fingerprint"] == model.fingerprint:
            return path
    raise ModelError(
        f"{model.name}: no known students of this base come with the package; run a recipe "
        "with several kinds of teacher (undertow run paper/channel --set model.name=…), "
        "then undertow analyze students RUN, and give its file with --known"
    )


def _check_base(model: "Model", facts: "dict[str, Any]", known: Path | None) -> None:
    if facts["fingerprint"] != model.fingerprint:
        raise VectorMismatchError(
            f"{known}: its students belong to {facts['base']!r} (fingerprint "
            f"{facts['fingerprint']}), this is {model.name!r} ({model.fingerprint})"
        )
