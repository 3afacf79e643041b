"""Figures of a vector that rows taught, and of numbers entangled with a trait.

Needs matplotlib; knows `undertow.measurements` and nothing of pages. Those of channels
are in `report.channel_figures`.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.ticker import MaxNLocator

from undertow.measurements import EntanglementMeasurement, Spread, VectorMeasurement
from undertow.report.drawings import (
    INK,
    PAPER,
    Axes,
    bare,
    breadth,
    drawable,
    fit,
    limits,
    mean_of,
    points,
    zero,
)
from undertow.report.panels import Figure, Panel, make_panel
from undertow.report.svg import PALETTE
from undertow.report.text import number
from undertow.results import Number

GROUPS = {
    "raised": "student",
    "lowered": "teacher",
    "random": "control",
}
"""Groups of numbers and their colours."""
SETS = {"rows": "student", "control": "control"}
MARKS = {"raised": "o", "lowered": "s", "random": "D"}


def draw_vector_figures(facts: VectorMeasurement) -> dict[str, Figure]:
    """What the vector is like, what it moves, and how well it explained the rows."""
    panels = [
        _bars("cosines", f"Cosine with each trait's vector, block {facts.layer}",
              facts.cosines, "cosine"),
        _bars("moved", "Change of each trait, steered along it", facts.says.battery,
              "nats of log-odds"),
    ]  # fmt: skip
    figures = {
        "likeness": Figure(tuple(p for p in panels if p is not None)),
        "losses": _losses(facts),
    }
    return {name: figure for name, figure in figures.items() if figure.panels}


def _bars(
    key: str, title: str, values: Mapping[str, Number], unit: str
) -> Panel | None:
    """Every trait, the largest first."""
    there = {name: v for name, v in values.items() if v is not None and drawable(v)}
    if not there:
        return None
    order = sorted(there, key=lambda name: -there[name])
    first = ", ".join(f"{n} {number(there[n], signed=True)}" for n in order[:3])
    longest = max(breadth(fit(name, 14)) for name in order)
    draw = partial(draw_bars, values=[(n, there[n]) for n in order], unit=unit)
    return make_panel(
        key, title, f"Largest: {first}", draw, height=52.0 + 17 * len(order),
        left=longest + 14, top=4.0,
    )  # fmt: skip


def draw_bars(axes: Axes, values: Sequence[tuple[str, float]], unit: str) -> None:
    """A stroke from zero for each name; the first is coloured."""
    bare(axes, grid="x")
    axes.set(xlim=limits([v for _, v in values]), ylim=(len(values) - 0.4, -0.6))
    axes.set_yticks(range(len(values)), [fit(name, 14) for name, _ in values])
    axes.set_xlabel(unit)
    zero(axes)
    for place, (_, value) in enumerate(values):
        colour = PALETTE["student" if place == 0 else "control"]
        axes.plot([0, value], [place, place], color=colour, linewidth=2)
        axes.plot([value], [place], "o", color=colour, markersize=6,
                  markeredgecolor=PAPER)  # fmt: skip
    axes.get_yticklabels()[0].set(color=INK, fontweight="bold")


def _losses(facts: VectorMeasurement) -> Figure:
    last = [
        f"{each.set} {number(each.losses[-1], digits=3)}"
        for each in facts.sets
        if each.losses
    ]
    if not last:
        return Figure(())
    panel = make_panel(
        "losses", "Loss while the vector was trained", f"At the end: {', '.join(last)}",
        partial(draw_losses, facts=facts), height=200.0, left=56.0,
    )  # fmt: skip
    return Figure((panel,), tuple((SETS[each.set], each.set) for each in facts.sets))


def draw_losses(axes: Axes, facts: VectorMeasurement) -> None:
    """A thin line for each set, and the mean over a tenth of its updates as a thick one."""
    bare(axes, grid="y")
    axes.set_xlabel("update")
    axes.set_ylabel("nats a token")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    every = [loss for each in facts.sets for loss in each.losses]
    axes.set_ylim(*limits(every, include=None))
    for each in facts.sets:
        losses, colour = points(each.losses), PALETTE[SETS[each.set]]
        axes.plot(
            range(1, len(losses) + 1), losses, color=colour, linewidth=1, alpha=0.4
        )
        wide = max(1, len(losses) // 10)
        means = [
            mean_of(losses[at : at + wide]) for at in range(len(losses) - wide + 1)
        ]
        middle = [at + (wide + 1) / 2 for at in range(len(means))]
        axes.plot(middle, means, color=colour, linewidth=2)


def draw_entanglement_figures(facts: EntanglementMeasurement) -> dict[str, Figure]:
    """Change against effect of the numbers told, and the groups' means."""
    legend = tuple((colour, f"{name} numbers") for name, colour in GROUPS.items())
    rho = facts.comparison.correlation
    told = make_panel(
        "told", "Each number that was told",
        f"Rank correlation {number(rho.mean, signed=True)} over {rho.n} numbers",
        partial(draw_told, facts=facts), height=230.0, left=58.0,
    )  # fmt: skip
    spreads = {name: getattr(facts.comparison, name) for name in GROUPS}
    spreads["raised − random"] = facts.comparison.difference
    words = "; ".join(
        f"{name} {number(s.mean, signed=True, digits=3)}" for name, s in spreads.items()
    )
    means = make_panel(
        "groups", "Mean of each group", words, partial(draw_spreads, spreads=spreads,
                                                       trait=facts.trait),
        height=170.0, left=112.0,
    )  # fmt: skip
    return {"told": Figure((told, means), legend)}


def draw_told(axes: Axes, facts: EntanglementMeasurement) -> None:
    """How much likelier the persona makes a number, and what telling it does."""
    bare(axes, grid="y")
    zero(axes, vertical=False)
    axes.set_xlabel("change of the number under the persona, nats")
    axes.set_ylabel(f"effect on {fit(facts.trait, 14)}, nats")
    axes.set_xlim(*limits([t.change for t in facts.told], include=None))
    axes.set_ylim(*limits([t.effect for t in facts.told]))
    for name, colour in GROUPS.items():
        own = [t for t in facts.told if t.group == name]
        axes.plot(points(t.change for t in own), points(t.effect for t in own),
                  MARKS[name], color=PALETTE[colour], markersize=7, linestyle="none",
                  markeredgecolor=PAPER)  # fmt: skip


def draw_spreads(axes: Axes, spreads: Mapping[str, Spread], trait: str) -> None:
    """A mean and an interval for each."""
    bare(axes, grid="x")
    zero(axes)
    every = [v for s in spreads.values() for v in (s.mean, s.low, s.high)]
    axes.set(xlim=limits(every), ylim=(len(spreads) - 0.5, -0.5))
    axes.set_yticks(range(len(spreads)), list(spreads), color=INK)
    axes.set_xlabel(f"effect on {fit(trait, 14)}, nats of log-odds")
    for place, (name, spread) in enumerate(spreads.items()):
        colour = PALETTE[GROUPS.get(name, "ink")]
        axes.plot(points([spread.low, spread.high]), [place, place], color=colour,
                  linewidth=3, solid_capstyle="round")  # fmt: skip
        axes.plot(points([spread.mean]), [place], "o", color=colour, markersize=8,
                  markeredgecolor=PAPER)  # fmt: skip
