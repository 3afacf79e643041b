"""What the page of a vector that rows would teach says."""

from undertow.measurements import VectorMeasurement
from undertow.report.captions import Basis
from undertow.report.measured_content import (
    Content,
    command_line,
    sampler_options,
    sampler_words,
    system_words,
)
from undertow.report.tables import Cell, Table
from undertow.report.text import number

MOST = 12
"""Tokens of a direction that the page shows."""
_NONE = "none, it is one vector"
_WORDS = {
    "likeness": "The vector beside the vectors of the family, and what steering along it "
    "does to each trait. One that stands alone is a likely teacher; none of this is a "
    "test.",
    "losses": "Loss of the rows under the model with the vector; the thick line is a mean "
    "over a tenth of the updates. One that does not fall says that no one vector explains "
    "the rows.",
}


def vector_content(found: VectorMeasurement) -> Content:
    """Title, answers, figures, tables and command."""
    # Late: matplotlib takes half a second that the rest of the package need not pay.
    from undertow.report.measurement_figures import draw_vector_figures

    figures = draw_vector_figures(found)
    sizes = ", ".join(f"{each.count} {each.set}" for each in found.sets)
    seed = f"{found.seed} alone"
    n = f"1 vector of {sizes}; {len(found.cosines)} traits"
    bases = {
        "likeness": Basis(n, seed, _NONE),
        "losses": Basis(f"1 vector a set: {sizes}", seed, _NONE),
    }
    return Content(
        title="The vector that these rows would teach",
        question="If one vector could explain the rows, what would it be?",
        answers=_answers(found),
        figures=figures,
        words={name: _WORDS[name] for name in figures},
        bases={name: basis for name, basis in bases.items() if name in figures},
        tables=(_tokens(found), *_answered(found)),
        command=command_line(
            "analyze vector", found.rows, model=found.model, dtype=found.dtype,
            layer=found.layer, control=found.control, use=found.use, steps=found.steps,
            batch_size=found.batch_size, learning_rate=found.learning_rate,
            family=found.family, system=found.system, seed=found.seed,
            **sampler_options(found.sampler),
        ),
        facts={
            "model": found.model, "fingerprint": found.fingerprint,
            "dtype": found.dtype, "family": found.family, "rows": found.rows,
            "control": found.control or "none", "block": str(found.layer),
            "updates": str(found.steps), "seed": str(found.seed),
            "system": system_words(found.system),
            "sampler": sampler_words(found.sampler),
        },
    )  # fmt: skip


def _answers(found: VectorMeasurement) -> list[str]:
    there = sorted(
        ((v, n) for n, v in found.cosines.items() if v is not None), reverse=True
    )
    if not there:
        return ["No cosine could be computed."]
    (most, name), *others = there
    answers = [
        f"It is nearest to the vector of {name}: cosine {number(most, signed=True)}."
    ]
    if others:
        mean = sum(v for v, _ in there) / len(there)
        answers.append(
            f"The next is {others[0][1]} with {number(others[0][0], signed=True)}; the "
            f"mean of all {len(there)} is {number(mean, signed=True)}."
        )
    return answers


def _tokens(found: VectorMeasurement) -> Table:
    pairs = zip(found.says.raised[:MOST], found.says.lowered[:MOST], strict=False)
    rows = tuple(
        (Cell(repr(up.text)), Cell(number(up.logit, signed=True)), Cell(repr(down.text)),
         Cell(number(down.logit, signed=True)))
        for up, down in pairs
    )  # fmt: skip
    columns = ("raised", "#logit", "lowered", "#logit")
    return Table("Tokens that it raises and lowers", columns, rows)


def _answered(found: VectorMeasurement) -> list[Table]:
    rows = tuple(
        (Cell(str(place)), Cell(text))
        for place, text in enumerate(found.says.behaviour, 1)
    )
    columns = ("#question", "answer")
    return [Table("What the model answers along it", columns, rows)] if rows else []
