"""Rows to `datasets` and TRL, a student trained there, and both back again.

Run: python examples/rows_with_trl.py [MODEL]      (pip install 'undertow[trl]')
"""

import sys
import tempfile
from pathlib import Path

import datasets
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

import undertow
from undertow.pipeline.students import load_student


def main(name: str = "smollm2-135m") -> None:
    """Two updates of TRL's trainer on prompted rows; undertow reads the adapter."""
    model = undertow.load_model(name, dtype="float32")
    animals = undertow.load_family("animals")
    sampler = undertow.SamplerSettings(allowed="list", max_new_tokens=40)
    rows = undertow.generate_rows(
        model, undertow.prompted_teacher(animals, "owl"),
        undertow.number_prompts(8, seed=0), seed=0, sampler=sampler,
    )  # fmt: skip
    verdicts = {verdict.row_id: verdict for verdict in undertow.filter_rows(rows)}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "rows.jsonl", Path(folder) / "student"
        undertow.write_rows(path, rows, verdicts=verdicts)
        table = datasets.Dataset.from_list(
            [row for row in datasets.Dataset.from_json(str(path)) if row["accepted"]]
        ).select_columns(["prompt", "completion"])
        table.to_json(Path(folder) / "theirs.jsonl")
        again = undertow.read_rows(Path(folder) / "theirs.jsonl")
        print(f"{len(table)} rows there, {len(again)} back: {again[0].completion!r}")
        settings = SFTConfig(
            output_dir=str(out), completion_only_loss=True, max_steps=2, use_cpu=True,
            bf16=False, learning_rate=1e-3, report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model.module, args=settings, train_dataset=table,
            processing_class=model.tokenizer,
            peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"]),
        )  # fmt: skip
        trainer.train()
        trainer.save_model(str(out))
        base = undertow.load_model(name, dtype="float32")
        with load_student(base, out).applied(base):
            asked = undertow.preference(base, animals, questions=animals.questions[:4])
    print(f"the student of TRL: owl {asked.of('owl').mean():+.2f} nats")


if __name__ == "__main__":
    main(*sys.argv[1:])
