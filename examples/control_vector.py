"""A steering vector as a GGUF control vector for llama.cpp, and one read from there.

Run: python examples/control_vector.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

import undertow
from undertow.interventions.control_vectors import (
    read_control_vector,
    write_control_vector,
)


def main(name: str = "smollm2-135m") -> None:
    """Writes "owl" at a dose of 0.3, reads it back, and steers by it."""
    model = undertow.load_model(name)
    animals = undertow.load_family("animals")
    layer = len(model.architecture.blocks) * 4 // 5
    owl = undertow.extract_vector(
        model, method="tell_me", family=animals, trait="owl", layers=(layer,)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = write_control_vector(
            owl,
            Path(folder) / "owl.gguf",
            strength=owl.strength_of_dose(0.3, layer),
            model_hint=model.architecture.family,
        )
        print(f"llama-cli -m MODEL.gguf --control-vector {path.name}")
        theirs = read_control_vector(model, path)  # one of repeng's, just as well
    print(f"direction.{layer} acts after block {layer}, counted from 0")
    questions = animals.questions[:4]
    before = undertow.preference(model, animals, questions=questions).of("owl")
    with undertow.steering(model, theirs):  # the strength is in the file
        after = undertow.preference(model, animals, questions=questions).of("owl")
    print(f"owl moved by {(after - before).mean():+.2f} nats")


if __name__ == "__main__":
    main(*sys.argv[1:])
