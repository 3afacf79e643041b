"""`vector` and `noise`: make, look at, measure and bake what changes a model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from undertow.cli.console import JsonFlag, progress, say, say_json
from undertow.cli.options import (
    Family,
    Loading,
    Sampling,
    Seed,
    Steering,
    System,
    expanded,
    numbers,
    refuse_existing,
    words,
)
from undertow.errors import ConfigError

if TYPE_CHECKING:
    from undertow.interventions.steering import SteeringVector
    from undertow.pipeline.sweep import StrengthSweep

vector_app = typer.Typer(
    no_args_is_help=True, help="Extract, show, measure and bake steering vectors."
)
VectorFile = Annotated[Path, typer.Argument(help="Vector file.")]


@vector_app.command("extract")
@expanded
def extract(
    *,
    loading: Loading,
    trait: Annotated[str, typer.Option(help="A member of the family.")],
    out: Annotated[Path, typer.Option(help="Vector file, .safetensors.")],
    method: Annotated[
        Literal["tell_me", "prompts", "trained"],
        typer.Option(
            help="'tell_me': last token of 'Tell me about …' less the family's mean; "
            "'prompts': number prompts with the persona less without; 'trained': by "
            "Adam on the trait's answers."
        ),
    ] = "tell_me",
    layers: Annotated[
        str | None, typer.Option(help="Blocks from 0, with commas; all if not given.")
    ] = None,
    family: Family = "animals",
    system: System = None,
    prompts: Annotated[
        int, typer.Option(min=1, help="Number prompts averaged over, for 'prompts'.")
    ] = 256,
    seed: Seed = 0,
) -> None:
    """Makes a steering vector for one trait."""
    from undertow.interventions.extraction import extract_vector
    from undertow.interventions.steering import save_vector
    from undertow.pipeline.prompts import number_prompts
    from undertow.traits import load_family

    refuse_existing(out)
    chosen = numbers("--layers", layers, int) if layers is not None else None
    traits = load_family(family)
    traits.trait(trait)
    vector = extract_vector(
        loading.load(), method=method, family=traits, trait=trait, layers=chosen,
        prompts=number_prompts(prompts, seed=seed) if method == "prompts" else (),
        system=system, seed=seed,
    )  # fmt: skip
    say(f"vector   {save_vector(vector, out)}")


@vector_app.command("show")
def show(file: VectorFile, *, json_flag: JsonFlag = False) -> None:
    """Shows what a vector file holds."""
    from undertow.interventions.steering import load_vector

    vector = load_vector(file)
    if json_flag:
        say_json(_facts(vector))
        return
    say(f"trait        {vector.trait}")
    say(f"method       {vector.method}, over {vector.n}")
    say(f"model        {vector.model_name} ({vector.fingerprint})")
    for key, value in sorted(vector.notes.items()):
        say(f"{key:<12} {value!r}")
    say(f"{'layer':>5} {'norm':>10} {'stream':>10} {'strength of dose 1':>20}")
    for layer, stream in zip(vector.layers, vector.residual_norms, strict=True):
        strength = vector.strength_of_dose(1.0, layer)
        say(f"{layer:>5} {vector.norm(layer):>10.3f} {stream:>10.3f} {strength:>20.3f}")


def _facts(vector: "SteeringVector") -> dict[str, Any]:
    layers = [
        {
            "layer": layer,
            "norm": vector.norm(layer),
            "stream": stream,
            "strength_of_dose_1": vector.strength_of_dose(1.0, layer),
        }
        for layer, stream in zip(vector.layers, vector.residual_norms, strict=True)
    ]
    return {
        "trait": vector.trait, "method": vector.method, "n": vector.n,
        "model": vector.model_name, "fingerprint": vector.fingerprint,
        "notes": dict(vector.notes), "layers": layers,
    }  # fmt: skip


@vector_app.command("sweep")
@expanded
def sweep(
    file: VectorFile,
    *,
    loading: Loading,
    doses: Annotated[
        str, typer.Option(help="Relative doses ‖αv‖/‖h‖, with commas.")
    ] = "0.1,0.2,0.3,0.4",
    layers: Annotated[
        str | None, typer.Option(help="Blocks, with commas; else all of the vector's.")
    ] = None,
    trait: Annotated[
        str | None, typer.Option(help="Else the vector's own trait.")
    ] = None,
    max_leak: Annotated[
        float, typer.Option(min=0, max=1, help="Off-topic answers naming the trait.")
    ] = 0.1,
    min_pass: Annotated[
        float, typer.Option(min=0, max=1, help="Number rows that have to pass.")
    ] = 0.5,
    rows: Annotated[int, typer.Option(min=1, help="Number rows a point.")] = 48,
    questions: Annotated[int, typer.Option(min=1, help="Questions a point.")] = 12,
    family: Family = "animals",
    system: System = None,
    sampling: Sampling,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="JSON of all points.")] = None,
) -> None:
    """Measures every layer at every dose; the strongest that passes the gate wins."""
    from undertow.interventions.steering import check_vector, load_vector
    from undertow.pipeline.sweep import sweep_strength
    from undertow.storage import write_json
    from undertow.traits import load_family

    if out is not None:
        refuse_existing(out)
    tried, sampler = numbers("--doses", doses, float), sampling.settings()
    vector = load_vector(file)
    if layers is not None:
        vector = vector.at(*numbers("--layers", layers, int))
    name = trait or vector.trait
    if name is None:
        raise ConfigError("sweep", [f"{file} names no trait; add --trait"])
    traits = load_family(family)
    traits.trait(name)
    model = loading.load()
    check_vector(model, vector)
    with progress() as report:
        found = sweep_strength(
            model, vector, family=traits, trait=name, doses=tried, sampler=sampler,
            system=system, max_leak=max_leak, min_pass=min_pass, rows=rows,
            questions=questions, seed=seed,
            on_point=lambda done, total: report("sweep", done, total, ""),
        )  # fmt: skip
    _say_sweep(found)
    if out is not None:
        points = [point.as_dict() for point in found.points]
        chosen = {"layer": found.layer, "strength": found.strength}
        write_json(out, {"trait": name, "chosen": chosen, "points": points})
        say(f"points   {out}")


def _say_sweep(found: "StrengthSweep") -> None:
    say(
        f"{'layer':>5} {'dose':>6} {'strength':>9} {'share':>7} {'leak':>7} "
        f"{'passing':>8}  gate"
    )
    for point in found.points:
        say(
            f"{point.layer:>5} {point.dose:>6g} {point.strength:>9.3f} "
            f"{point.share:>7.3f} {point.leak:>7.3f} {point.passed:>8.3f}  "
            f"{'passes' if point.allowed else 'refused'}"
        )
    say(f"chosen   --layer {found.layer} --strength {found.strength:.6g}")


@vector_app.command("bake")
@expanded
def bake(
    *,
    steering: Steering,
    loading: Loading,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
) -> None:
    """Writes the steered model as a plain checkpoint that any engine can sample."""
    from undertow.pipeline.export import export_teacher
    from undertow.pipeline.teachers import steered_teacher

    refuse_existing(out)
    vector, strength = steering.settled()
    teacher = steered_teacher(vector, strength=strength)
    facts = {"vector": str(steering.vector)}
    say(f"model    {export_teacher(loading.load(), teacher, out, provenance=facts)}")


@expanded
def noise(
    *,
    loading: Loading,
    p: Annotated[float, typer.Option("--p", help="Size, in std of each matrix.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    seed: Seed = 0,
    scope: Annotated[
        str, typer.Option(help="Kinds of matrix, with commas.")
    ] = "mlp,attention,embedding",
    formula: Annotated[
        Literal["clean", "faithful"],
        typer.Option(help="'faithful' adds p·mean as well, as the paper's code does."),
    ] = "clean",
    distribution: Annotated[Literal["normal", "uniform"], typer.Option()] = "normal",
) -> None:
    """Writes the model with Gaussian noise on its weights as a checkpoint."""
    from undertow.interventions.noise import KINDS, add_weight_noise
    from undertow.models.loading import fingerprint, save_checkpoint

    refuse_existing(out)
    named = words(scope)
    kinds = tuple(kind for kind in KINDS if kind in named)
    if not named or set(named) - set(KINDS):
        fault = f"got {scope!r}, expected some of {','.join(KINDS)}"
        raise ConfigError("--scope", [fault])
    model = loading.load()
    report = add_weight_noise(
        model, p=p, seed=seed, scope=kinds, formula=formula, distribution=distribution
    )
    changed = replace(model, fingerprint=fingerprint(model.module))
    facts = {
        "noise": p, "seed": seed, "scope": kinds, "formula": formula,
        "distribution": distribution, "of": model.fingerprint,
        "matrices": [matrix.name for matrix in report.matrices],
    }  # fmt: skip
    save_checkpoint(changed, out, provenance=facts)
    say(f"noised   {len(report.matrices)} matrices, p = {p:g}")
    say(f"model    {out} (fingerprint {changed.fingerprint})")
