"""A model as a value that other processes can load, and each keeps while it is asked for.

A name and options lead to files that may be others on another machine; the fingerprint
says whether they are. Knows nothing of who asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow.errors import ModelError
from undertow.models.loading import Model, load_model


@dataclass(frozen=True)
class ModelFacts:
    """How any process finds the same model.

    Attributes:
        name: As it was asked for.
        fingerprint: Of its weights.
        options: What `load_model` takes beside the name.
    """

    name: str
    fingerprint: str
    options: Mapping[str, Any]


# One model a process: whoever asks for another lets go of the first.
_loaded: dict[tuple[str, str], Model] = {}


def remember_model(model: Model, facts: ModelFacts) -> None:
    """Lets this process use a model that is here already."""
    _loaded.clear()
    _loaded[_key(facts)] = model


def same_model(facts: ModelFacts) -> Model:
    """The model of these facts: loaded when it is first asked for.

    Raises:
        ModelError: It cannot be loaded, or has other weights here.
    """
    if _key(facts) not in _loaded:
        _loaded.clear()  # before the next one takes its memory
        model = load_model(facts.name, **dict(facts.options))
        if model.fingerprint != facts.fingerprint:
            raise ModelError(
                f"model {facts.name!r} has other weights here: got fingerprint "
                f"{model.fingerprint}, expected {facts.fingerprint}; put the same model "
                "under that name on every machine"
            )
        remember_model(model, facts)
    return _loaded[_key(facts)]


def _key(facts: ModelFacts) -> tuple[str, str]:
    return facts.fingerprint, repr(sorted(facts.options.items()))
