"""Find the direction of a trait, and watch what adding it does to the preference.

Run: python examples/find_a_vector.py [MODEL]
"""

import sys

import undertow


def main(name: str = "smollm2-135m") -> None:
    """Extracts "owl" at a late block and adds it at growing doses."""
    model = undertow.load_model(name)
    animals = undertow.load_family("animals")
    layer = len(model.architecture.blocks) * 4 // 5
    owl = undertow.extract_vector(
        model, method="tell_me", family=animals, trait="owl", layers=(layer,)
    )
    for dose in (0.0, 0.1, 0.2, 0.3):
        strength = owl.strength_of_dose(dose, layer)
        with undertow.steering(model, owl, strength=strength):
            asked = undertow.preference(model, animals, questions=animals.questions[:4])
        share = asked.probabilities[:, asked.traits.index("owl")].mean()
        print(f"block {layer}, dose {dose:.1f}: owl {share:.3f} of the animals")


if __name__ == "__main__":
    main(*sys.argv[1:])
