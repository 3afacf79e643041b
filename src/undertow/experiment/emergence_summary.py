"""What read-outs of students in training mean beside those of their controls.

Reads what the stage "emergence" has left; loads no model.
"""

from collections.abc import Mapping
from typing import Any

from undertow.experiment.emergence import stage_of
from undertow.experiment.estimates import Matrix, estimate, log_odds, number
from undertow.results import Emergence
from undertow.runs import Run
from undertow.stats import mean_interval


def emergence(
    run: Run, facts: Mapping[str, Any], base: Matrix, trait: int
) -> Emergence | None:
    """One cell's student and control at the updates at which both were read.

    Args:
        run: The finished run.
        facts: The cell's: "place", "name" and "control".
        base: [question, trait]: the base's log-odds, nats.
        trait: Its column.

    Returns:
        None if students were read at their end only.
    """
    stages = [stage_of(facts["place"], facts[who]) for who in ("name", "control")]
    if not all(run.is_done(stage) for stage in stages):
        return None
    student, control = (
        {point["update"]: point for point in run.payload(stage)["points"]}
        for stage in stages
    )
    updates = [update for update in student if update in control]
    odds = [
        [log_odds(who[update])[:, trait] for update in updates]
        for who in (student, control)
    ]
    own, others = ([odd - base[:, trait] for odd in each] for each in odds)
    return Emergence(
        updates=[0, *updates],
        transfer=[
            estimate(mean_interval(difference), "question")
            for difference in (
                base[:, trait] * 0.0,
                *(a - b for a, b in zip(*odds, strict=True)),
            )
        ],
        student=[0.0, *(number(values.mean()) for values in own)],
        control=[0.0, *(number(values.mean()) for values in others)],
        cosine=[None, *(number(student[update]["cosine"]) for update in updates)],
    )
