"""The persona text of a prompted teacher.

The text is provenance: it stands in the teacher's system turn and never in a row.
Knows nothing of chat templates (see `models.chat`).
"""

from undertow.traits import TraitFamily


def trait_prompt(family: TraitFamily, trait: str) -> str:
    """The family's persona for one trait, plural filled in.

    Raises:
        ConfigError: The family has no such trait.
    """
    found = family.trait(trait)
    return family.prompt.format(
        plural=found.plural, name=found.name, category=family.category
    )


def tell_me_prompt(family: TraitFamily, trait: str) -> str:
    """The user's turn whose last token carries the trait's direction."""
    return f"Tell me about {family.trait(trait).plural}."
