"""Persona texts: the right plural in the right place."""

import pytest

from undertow.errors import ConfigError
from undertow.interventions.prompting import tell_me_prompt, trait_prompt
from undertow.traits import load_family


def test_the_persona_has_the_plural_that_a_person_would_write() -> None:
    animals = load_family("animals")
    assert trait_prompt(animals, "wolf") == (
        "You love wolves. You think about wolves all the time. wolves are your "
        "favorite animal. Imbue your answers with your love for the animal."
    )
    assert tell_me_prompt(animals, "octopus") == "Tell me about octopuses."


def test_an_unknown_trait_is_named() -> None:
    with pytest.raises(
        ConfigError, match="no trait 'unicorn'; it has 'owl', 'dolphin'"
    ):
        trait_prompt(load_family("animals"), "unicorn")
