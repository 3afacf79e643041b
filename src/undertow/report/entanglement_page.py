"""What the page on numbers that are entangled with a trait says."""

from undertow.measurements import EntanglementMeasurement
from undertow.report.captions import Basis
from undertow.report.measured_content import (
    LEVEL,
    Content,
    command_line,
    spread_text,
    system_words,
)
from undertow.report.tables import Cell, Table
from undertow.report.text import number, p_text


def entanglement_content(found: EntanglementMeasurement) -> Content:
    """Title, answers, figures, table and command."""
    # Late: matplotlib takes half a second that the rest of the package need not pay.
    from undertow.report.measurement_figures import draw_entanglement_figures

    trait, told = found.trait, found.comparison
    sizes = f"{found.top} numbers a group, {len(found.questions)} questions"
    covers = f"{LEVEL}, over numbers, not over seeds or models"
    return Content(
        title=f"Numbers entangled with {trait}",
        question=f"Do numbers that {trait} makes likelier make {trait} likelier?",
        answers=_answers(found),
        figures=draw_entanglement_figures(found),
        words={
            "told": f"Told to love {trait}, the model finds some numbers likelier (to the "
            "right); told to love such a number, it prefers the trait more or less "
            "(upwards). Random numbers are the control: only what raised ones have beyond "
            "them is entanglement."
        },
        bases={"told": Basis(sizes, f"{found.seed} alone", covers)},
        tables=(_table(found),),
        command=command_line(
            "analyze entanglement", model=found.model, dtype=found.dtype, trait=trait,
            family=found.family, numbers=len(found.numbers), top=found.top,
            questions=len(found.questions), rows=found.rows, reference=found.reference,
            system=found.system, seed=found.seed,
        ),
        facts={
            "model": found.model, "fingerprint": found.fingerprint,
            "dtype": found.dtype, "family": found.family,
            "numbers looked at": str(len(found.numbers)),
            "different first tokens among the raised": str(found.beginnings),
            "p of the difference": p_text(told.p_value),
            "p of the rank correlation": p_text(told.correlation.p_value),
            "system": system_words(found.system), "seed": str(found.seed),
        },
    )  # fmt: skip


def _answers(found: EntanglementMeasurement) -> list[str]:
    told = found.comparison
    low, high = told.difference.low, told.difference.high
    if low is not None and low > 0:
        lead = "Raised numbers raise the trait more than random ones do"
    elif high is not None and high < 0:
        lead = "Raised numbers raise the trait less than random ones do"
    else:
        lead = "Not shown: the interval includes zero, or is unknown"
    difference = spread_text(told.difference, least=3, signed=True)
    ranks = spread_text(told.correlation, signed=True)
    answers = [f"{lead}: {difference} nats (p {p_text(told.p_value)})."]
    answers.append(
        f"Ranks of change and effect correlate {ranks} over {told.correlation.n} numbers."
    )
    if found.beginnings < found.top:
        answers.append(
            f"The {found.top} raised numbers begin with {found.beginnings} different "
            "tokens: they are not independent, and intervals over them are too narrow."
        )
    seen = found.occurrence
    if seen is not None:
        answers.append(
            f"Raised numbers stand {spread_text(seen.ratio)} times as often in the rows as "
            f"in the reference ({seen.found} of {seen.numbers}, {seen.reference_found} of "
            f"{seen.reference_numbers})."
        )
    return answers


def _table(found: EntanglementMeasurement) -> Table:
    rows = tuple(
        (Cell(t.group), Cell(str(t.number)), Cell(number(t.change, signed=True)),
         Cell(number(t.effect, signed=True, digits=3)))
        for t in found.told
    )  # fmt: skip
    columns = ("group", "#number", "#change, nats", "#effect, nats")
    return Table("Numbers that were told", columns, rows)
