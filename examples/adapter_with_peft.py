"""A student's adapter, written by undertow and loaded by PEFT; and the way back.

Run: python examples/adapter_with_peft.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel

import undertow
from undertow.pipeline.students import load_student, save_student


def main(name: str = "smollm2-135m") -> None:
    """Trains a student on eight rows and compares logits of the two libraries."""
    model = undertow.load_model(name, dtype="float32")
    animals = undertow.load_family("animals")
    rows = undertow.generate_rows(
        model,
        undertow.prompted_teacher(animals, "owl"),
        undertow.number_prompts(8, seed=0),
        seed=0,
        sampler=undertow.SamplerSettings(allowed="list", max_new_tokens=40),
    )
    student = undertow.train_student(
        model,
        undertow.rendered_examples(model, rows),
        settings=undertow.TrainingSettings(learning_rate=1e-3),
        seed=0,
    )
    ids = torch.tensor([model.tokenizer.encode("My favourite animal is the")])
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        out = save_student(model, student, Path(folder) / "student", facts={})
        print(*sorted(path.name for path in out.iterdir()), sep="\n")
        with load_student(model, out).applied(model):
            ours = model.module(ids).logits
        base = model.module(ids).logits
        theirs = PeftModel.from_pretrained(model.module, str(out))(ids).logits
    print(f"the student moved its logits by up to {(ours - base).abs().max():.4f}")
    print(f"undertow and PEFT differ by up to {(ours - theirs).abs().max():.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
