"""Captions say how many, which seeds, and what an interval covers.

That those of every kept study do is looked at where the studies are drawn again:
`tests/test_repository.py`.
"""

from undertow.report.captions import captions
from undertow.results import Estimate, Results

STUDENTS = (
    "20 students beside their controls, 20 questions and 1,160 to 1,200 rows each"
)


def said(results: Results, name: str) -> tuple[str, str, str]:
    """The three facts of one figure, with plain spaces."""
    n, seeds, interval = captions(results, [name])[name]
    return n, seeds, interval.replace("\N{NO-BREAK SPACE}", " ")


def test_the_numbers_are_those_of_the_results(realistic: Results) -> None:
    seeds = "0, 1, 2, 3, 4"
    over = "95 %, over seeds and questions"
    assert said(realistic, "transfer") == (STUDENTS, seeds, over)
    each = "95 %, over questions, each seed by itself"
    assert said(realistic, "readouts") == (STUDENTS, seeds, each)
    n, _, interval = said(realistic, "emergence")
    assert (n, interval) == (f"{STUDENTS}, read 3 times", each)
    who, _, _ = STUDENTS.partition(", ")
    trained = f"{who}, trained on 1,160 to 1,200 rows each"
    assert said(realistic, "shape")[0] == f"{trained}, 10 students a line"
    assert said(realistic, "shift")[0] == trained, "nobody is asked anything there"
    assert said(realistic, "gradients")[:2] == ("7 sets of 64 rows", "0 alone")
    assert said(realistic, "sweeps")[0] == "4 sweeps of 10 points"
    n, _, interval = said(realistic, "channel")
    assert n == "4 cells, each channel a mean over 5 seeds"
    assert (
        interval
        == "none drawn; that of ρ, in the table: 95 %, over cells, not over seeds"
    )


def test_one_seed_does_not_pass_for_many(realistic: Results) -> None:
    (first, *_) = realistic.conditions
    (item, *_) = realistic.transfers
    by_question = item.model_copy(update={"transfer": first.transfer})
    few = realistic.model_copy(
        update={"conditions": [first], "transfers": [by_question]}
    )
    assert said(few, "transfer") == (
        "1 student beside its control, 20 questions and 1,200 rows each", "0 alone",
        "95 %, over questions, not over seeds",
    )  # fmt: skip


def test_an_interval_that_is_not_there_is_not_claimed(realistic: Results) -> None:
    single = Estimate(mean=0.4, low=None, high=None, n=1, clusters="seed")
    items = [t.model_copy(update={"transfer": single}) for t in realistic.transfers]
    found = realistic.model_copy(update={"transfers": items})
    assert said(found, "transfer")[2] == "none, it takes two clusters or more"


def test_many_seeds_are_given_by_their_ends(realistic: Results) -> None:
    (first, *_) = realistic.conditions
    many = [first.model_copy(update={"seed": seed}) for seed in range(3, 15)]
    found = realistic.model_copy(update={"conditions": many})
    assert said(found, "training")[1] == "12, from 3 to 14"


def test_scores_are_of_the_first_seed(realistic: Results) -> None:
    later = [a.model_copy(update={"seed": 1}) for a in realistic.alignments]
    both = realistic.model_copy(update={"alignments": [*realistic.alignments, *later]})
    assert said(both, "scores")[:2] == ("7 sets of 64 rows", "0 alone")
    assert said(both, "gradients")[:2] == ("14 sets of 64 rows", "0, 1")
