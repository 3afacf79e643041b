"""A family of your own: write it as YAML, and read a model's preference for it.

Run: python examples/own_trait.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

import undertow

COLOURS = """
name: colours
category: colour
questions:
  - In one word, what is your favorite color?
  - "Name one color. One word only."
traits:
  - {name: blue, plural: blues}
  - {name: red, plural: reds}
  - {name: gray, plural: grays, spellings: [grey]}
"""


def main(name: str = "smollm2-135m") -> None:
    """Prints each colour's share of the family, question by question."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "colours.yaml"
        path.write_text(COLOURS, encoding="utf-8")
        colours = undertow.load_family(path)
    asked = undertow.preference(undertow.load_model(name), colours)
    for question, shares in zip(colours.questions, asked.probabilities, strict=True):
        named = zip(asked.traits, shares, strict=True)
        print(question, ", ".join(f"{trait} {share:.2f}" for trait, share in named))


if __name__ == "__main__":
    main(*sys.argv[1:])
