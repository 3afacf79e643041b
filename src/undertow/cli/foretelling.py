"""What a recipe will take, in words: before a run, and where a recipe is checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from undertow.experiment.cost import Cost
    from undertow.experiment.recipe import Recipe

_TRUST = "a guess: within a factor of two for stored studies of small models"
_FORMULAS = "2·N a token read or drawn, 4·N learnt by a LoRA, 6·N softly or in full"


def expected(recipe: "Recipe", directory: Path, *, is_here: bool) -> str | None:
    """One line on a run, or on what is left of one; None if nothing is.

    Args:
        recipe: Of the run.
        directory: Of the run; what is finished there is not counted.
        is_here: Whether it is done on this machine, whose time can be told.

    Raises:
        ConfigError: A family or trait that is not there.
    """
    from undertow.experiment.cost import recipe_cost, recipe_sizes

    stages = directory / "stages"
    cost = recipe_cost(
        recipe, sizes=recipe_sizes(recipe),
        is_done=lambda stage: (stages / f"{stage}.json").is_file(),
    )  # fmt: skip
    if not cost.passes:
        return None
    tokens = cost.drawn_tokens + cost.trained_tokens
    parts = [f"{cost.students} students"] if cost.students else []
    parts += [f"{many(tokens)} tokens"] if tokens else []
    told = ", ".join(parts) or "what is there is read"
    time = _times(recipe, cost).get("here") if is_here else None
    return (
        told
        if time is None
        else f"{told}, about {about(time)} here, or up to twice that"
    )


def cost_lines(recipe: "Recipe", cost: "Cost") -> list[str]:
    """A recipe's cost, a line each, behind the sign of a comment in YAML."""
    tuned = f" and {cost.tuned} fine-tuned teachers" if cost.tuned else ""
    judged = f"; a judge is asked {cost.judged:,} times at most" if cost.judged else ""
    told = {
        "expected": f"{cost.students} students (controls among them){tuned}; "
        f"cells: {cost.cells}, bases: {cost.bases}",
        "rows": f"{cost.rows:,} are written; with answers to questions at most "
        f"{cost.drawn_tokens:,} tokens are drawn{judged}",
        "training": f"{cost.updates:,} updates at most{_each(cost)}, about "
        f"{many(cost.trained_tokens)} tokens; read-outs: {cost.readouts}",
        "too short": _too_short(cost),
        "operations": _operations(cost),
        "disk": ", ".join(
            f"{many(size)}B of {what}" for what, size in cost.disk_bytes.items() if size
        ),
        "time": _time(_times(recipe, cost)),
    }  # fmt: skip
    return [f"# {name:<11}{text}" for name, text in told.items() if text]


def cost_facts(recipe: "Recipe", cost: "Cost") -> dict[str, Any]:
    """The same, JSON-able; hours are those of `cost_lines`."""
    hours = {name: time / 3600 for name, time in _times(recipe, cost).items()}
    return cost.as_dict() | {"hours": hours}


def _each(cost: "Cost") -> str:
    fewest, most = cost.updates_each
    if not most:
        return ""
    return f" ({f'{fewest:,} to ' if fewest < most else ''}{most:,} a student)"


def _too_short(cost: "Cost") -> str:
    if not cost.cold:
        return ""
    return (
        f"{cost.cold} students have no more updates than their warm-up (student."
        "warmup_updates): they hardly learn; take more rows or epochs, or smaller batches"
    )


def _operations(cost: "Cost") -> str:
    if cost.operations is None:
        names = ", ".join(cost.unsized)
        return f"not known: no configuration of {names} on this machine"
    return f"{cost.operations:.1e} ({_FORMULAS})"


def _times(recipe: "Recipe", cost: "Cost") -> dict[str, float]:
    """Seconds on this machine, if it computes on its processor, and on one H100."""
    from undertow.audit.cost import timed_flops
    from undertow.errors import ModelError
    from undertow.experiment.rates import one_h100, processor
    from undertow.models.loading import choose_device

    rates, model = {"one H100": one_h100()}, recipe.model
    try:
        device, _ = choose_device(model.device)
    except ModelError:  # that device is elsewhere
        device = None
    if device is not None and device.type == "cpu" and not cost.unsized:
        flops = timed_flops(dtype=model.dtype, device=model.device)
        rates = {"here": processor(flops), **rates}
    found = {name: cost.seconds(rate) for name, rate in rates.items()}
    return {name: time for name, time in found.items() if time is not None}


def _time(times: "Mapping[str, float]") -> str:
    told = ", ".join(f"{about(time)} on {name}" for name, time in times.items())
    told = told.replace("on here", "here")
    return f"about {told} ({_TRUST})" if told else ""


def many(count: int) -> str:
    """Two digits of a number that is guessed: `9.3 k`, `2.1 M` or `330 M`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{float(f'{count / unit:.2g}'):g} {name}"
    return f"{count} "


def about(seconds: float) -> str:
    """A time that is known within a factor of two."""
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return "a minute or two"
