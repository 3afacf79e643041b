"""A trait's questions as a task of Inspect, for any model that Inspect can ask.

The one module that owns inspect_ai; its entry point makes `undertow/trait_battery` known
to `inspect eval`. Questions, sampling and the reading of answers are those of
`pipeline.evaluation.sampled_answers`. Knows nothing of models.
"""

from collections.abc import Sequence

from undertow import __version__
from undertow.errors import ConfigError, MissingDependencyError
from undertow.traits import TraitFamily, answer_spellings, load_family, names_in

try:
    from inspect_ai import Epochs, Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import (
        ChatMessage,
        ChatMessageSystem,
        ChatMessageUser,
        GenerateConfig,
    )
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import TaskState, generate
except ModuleNotFoundError as error:
    raise MissingDependencyError("a task of Inspect", "inspect") from error

VALID = "valid"
"""The score that says whether an answer names any member of the family."""


@task
def trait_battery(
    family: str = "animals",
    trait: str = "owl",
    decoys: str | Sequence[str] = (),
    questions: int | None = None,
    samples: int = 8,
    system: str | None = None,
    temperature: float = 1.0,
    max_tokens: int = 12,
) -> Task:
    """How often a model's answers name a trait: a rate, its standard error over questions.

    Args:
        family: A packaged family, or a YAML file of one.
        trait: The member that is looked for.
        decoys: Further members whose rates stand beside it.
        questions: The first so many of the family's; None asks all.
        samples: Answers to each question (Inspect's epochs).
        system: System text; None leaves it to the model's template.
        temperature: Of sampling; nothing else is cut off.
        max_tokens: Of an answer.

    Raises:
        ConfigError: No such family or member, or nothing to ask.
    """
    asked = load_family(family)
    wanted = _members(
        asked, [trait, *([decoys] if isinstance(decoys, str) else decoys)]
    )
    if samples < 1 or (questions is not None and questions < 1):
        fault = f"questions and samples: 1 at least; got {questions} and {samples}"
        raise ConfigError("trait_battery", [fault])
    return Task(
        dataset=MemoryDataset(
            _samples(asked, trait, questions, system), name=asked.name
        ),
        solver=generate(),
        scorer=names_members(family, wanted),
        epochs=Epochs(samples, "mean"),
        config=GenerateConfig(temperature=temperature, top_p=1.0, max_tokens=max_tokens),
        metadata={
            "undertow": __version__, "family": asked.name, "family_digest": asked.digest,
            "trait": trait, "decoys": wanted[1:],
        },
    )  # fmt: skip


def _members(family: TraitFamily, names: Sequence[str]) -> list[str]:
    """The names, each once.

    Raises:
        ConfigError: One that the family has not, or that is the name of a score.
    """
    found = list(dict.fromkeys(family.trait(name).name for name in names))
    if VALID in found:
        raise ConfigError("trait_battery", [f"{VALID!r} is the name of another score"])
    return found


def _samples(
    family: TraitFamily, trait: str, questions: int | None, system: str | None
) -> list[Sample]:
    spellings = list(answer_spellings(family.trait(trait)))
    head: list[ChatMessage] = (
        [] if system is None else [ChatMessageSystem(content=system)]
    )
    return [
        Sample(
            id=place,
            input=[*head, ChatMessageUser(content=question)],
            target=spellings,
        )
        for place, question in enumerate(family.questions[:questions], start=1)
    ]


@scorer(metrics={"*": [mean(), stderr()]})
def names_members(family: str, wanted: Sequence[str]) -> Scorer:
    """Scores an answer: 1 for each wanted member that it names, else 0; and validity.

    Args:
        family: Packaged, or a YAML file; its members are each other's alternatives.
        wanted: Members that get a score of their own.
    """
    asked = load_family(family)

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001
        named = names_in(state.output.completion, asked)
        values = {name: float(name in named) for name in wanted}
        return Score(
            value={**values, VALID: float(bool(named))},
            answer=", ".join(sorted(named)),
        )

    return score
