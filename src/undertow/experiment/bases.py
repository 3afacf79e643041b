"""The base of a noise level and seed, ready for work: loaded, of known origin, noised.

What is then done with it is `experiment.jobs`' business.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from undertow.errors import RunError
from undertow.experiment.recipe import ModelSettings
from undertow.experiment.stages import Base, Progress
from undertow.interventions.noise import add_weight_noise
from undertow.models.architecture import matrix_kind
from undertow.models.hooks import check_layers
from undertow.models.known_models import REGISTRY
from undertow.models.loading import Model, fingerprint, load_model, save_checkpoint
from undertow.models.registry import describe
from undertow.models.weights import copied_weights, put_back
from undertow.runs import Run, provenance

ORIGIN = "provenance"
"""The stage that keeps what a run was begun with."""
WRITER = "writer/model"
"""The stage that keeps which other model wrote the rows."""


def load(settings: ModelSettings, progress: Progress) -> Model:
    """The model of a recipe."""
    progress(f"load {settings.name}", 0, 1, "")
    model = load_model(
        settings.name,
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        template=settings.template,
        blocks_path=settings.blocks_path,
        norm_path=settings.norm_path,
    )
    progress(f"load {settings.name}", 1, 1, model.reason)
    return model


def prepared(base: Base) -> Base:
    """The base as this run's: of the run's origin, with its noise if it has any.

    Raises:
        RunError: The run was begun with another model, family or dtype.
    """
    if base.recipe.evaluation.cause_layer is not None:
        check_layers(base.model, [base.recipe.evaluation.cause_layer])
    keep_provenance(base)
    return _noised(base) if base.noise > 0 else base


def _noised(base: Base) -> Base:
    """The base with noise; if only one side has it, with the other side's weights."""
    noise, clean = base.recipe.noise, base.model
    names = [
        name
        for name, _ in clean.module.named_parameters()
        if matrix_kind(name, clean.module) in noise.scope and noise.on != "both"
    ]
    before = copied_weights(clean, names)
    report = add_weight_noise(
        clean,
        p=base.noise,
        seed=base.seed,
        scope=noise.scope,
        formula=noise.formula,
        distribution=noise.distribution,
    )
    noised = replace(
        clean,
        name=f"{clean.name}+noise{base.noise:g}",
        fingerprint=fingerprint(clean.module),
    )
    _keep_noise(base, noised, matrices=len(report.matrices))
    if noise.on == "teacher":
        after = copied_weights(noised, names)
        put_back(clean, before)
        return replace(base, teachers=after)
    return replace(
        base, model=noised, teachers=before if noise.on == "student" else None
    )


def _keep_noise(base: Base, noised: Model, *, matrices: int) -> None:
    """What was done to the base, and the base itself if the recipe asks for it."""
    noise, stage = base.recipe.noise, f"{base.place}/noise"
    if base.run.is_done(stage):
        return
    facts = {
        "p": base.noise, "seed": base.seed, "scope": list(noise.scope),
        "on": noise.on, "formula": noise.formula, "distribution": noise.distribution,
        "matrices": matrices, "fingerprint": noised.fingerprint,
    }  # fmt: skip
    if noise.keep:
        save_checkpoint(noised, base.path(f"{stage}/checkpoint"), provenance=facts)
    base.run.finish(stage, facts)


_SAME = ("model_fingerprint", "template_digest", "dtype", "family_digest")
"""What a continued run has to share with its beginning, or its stages do not compare."""


def keep_provenance(base: Base) -> None:
    """Writes the provenance, or checks that a continued run is still of that origin."""
    model, recipe = base.model, base.recipe
    registered = describe(model.name) if model.name in REGISTRY else {}
    facts = provenance(
        model=model.name,
        model_fingerprint=model.fingerprint,
        model_sha256=registered.get("gguf_sha256"),
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        dtype_reason=model.reason,
        template=model.template.name,
        template_digest=model.template.digest,
        system=recipe.model.system,
        sampler=recipe.rows.sampler.model_dump_json(),
        family_digest=base.family.digest,
    )
    if recipe.writer is not None:
        facts["writer"] = recipe.writer.name
    _same_origin(base.run, ORIGIN, facts)


def keep_writer(run: Run, model: Model) -> None:
    """The same for another model that writes the rows."""
    facts = {
        "model": model.name, "model_fingerprint": model.fingerprint,
        "template_digest": model.template.digest,
        "dtype": str(model.dtype).removeprefix("torch."),
    }  # fmt: skip
    _same_origin(run, WRITER, facts)


def _same_origin(run: Run, stage: str, facts: Mapping[str, Any]) -> None:
    """Keeps what a run was begun with, or checks that this is the same.

    Raises:
        RunError: It is not.
    """
    if not run.is_done(stage):
        run.finish(stage, facts)
        return
    first = run.payload(stage)
    changed = [
        f"  {name}: there {first[name]!r}, now {facts[name]!r}"
        for name in _SAME
        if name in first and first[name] != facts[name]
    ]
    if changed:
        lines = "\n".join(changed)
        raise RunError(
            f"{run.directory}: begun with another model, family or dtype, whose "
            f"results do not compare:\n{lines}\nBring back what it was begun with, or "
            "choose another directory"
        )
