"""The peers' side: measures what it is asked for, one JSON line in, one JSON line out.

Runs in the peers' own environment and imports nothing of undertow.

Usage: python peers.py generation|training TASK.json

Each line of the standard input is a variant: rows of a batch, for training "autocast"
after them if that is to be on.
"""

import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measuring import Meter, answer
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Found = dict[str, Any]


def generation(model: Any, _: Any, task: dict[str, Any], batch: int, __: bool) -> Found:  # noqa: FBT001
    """`model.generate` on batches sorted by length; tokens up to each end."""
    prompts, ends = sorted(task["prompts"], key=len), set(task["end_ids"])
    torch.manual_seed(0)
    tokens = 0
    with Meter() as meter:
        for start in range(0, len(prompts), batch):
            tokens += answered(model, task, prompts[start : start + batch], ends)
    return meter.found | {"tokens": tokens}


def answered(
    model: Any, task: dict[str, Any], part: list[list[int]], ends: set[int]
) -> int:
    """One batch of prompts; the tokens drawn."""
    width = max(map(len, part))
    pads = [width - len(p) for p in part]
    ids = [[0] * n + p for n, p in zip(pads, part, strict=True)]
    mask = [[0] * n + [1] * len(p) for n, p in zip(pads, part, strict=True)]
    with torch.inference_mode():
        answers = model.generate(
            input_ids=torch.tensor(ids, device=DEVICE),
            attention_mask=torch.tensor(mask, device=DEVICE),
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=task["new_tokens"], eos_token_id=task["end_ids"],
            pad_token_id=0,
        )[:, width:]  # fmt: skip
    return sum(
        next((i + 1 for i, t in enumerate(row) if t in ends), len(row))
        for row in answers.tolist()
    )


def training(
    model: Any,
    tokenizer: Any,
    task: dict[str, Any],
    batch: int,
    autocast: bool,  # noqa: FBT001
) -> Found:
    """One epoch of TRL's SFTTrainer: LoRA r8 on all linear layers, completion loss."""
    tokenizer.chat_template = task["template_text"]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": r["prompt"]}],
                "completion": [{"role": "assistant", "content": r["completion"]}],
            }
            for r in task["rows"]
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=1,
            learning_rate=1e-4, lr_scheduler_type="constant", bf16=autocast,
            use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False,
            completion_only_loss=True, max_length=None, packing=False, seed=0,
            report_to="none", save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        adapter = LoraConfig(
            r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        trainer = SFTTrainer(
            model=model, args=settings, train_dataset=rows,
            processing_class=tokenizer, peft_config=adapter,
        )  # fmt: skip
        tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        with Meter() as meter:
            trainer.train()
        return meter.found | {"tokens": tokens}


def main() -> None:
    """Loads the model, then measures each variant after a warm-up on a few items."""
    what, path = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    task = json.loads(path.read_text(encoding="utf-8"))

    def load() -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(
            task["folder"], dtype=torch.bfloat16
        )
        return loaded.to(DEVICE)

    began = time.perf_counter()
    model, tokenizer = load().eval(), AutoTokenizer.from_pretrained(task["folder"])
    loaded = time.perf_counter() - began
    work = {"generation": generation, "training": training}[what]
    few = {**task, "prompts": task["prompts"][:4], "rows": task["rows"][:4]}
    for line in sys.stdin:
        batch, *options = json.loads(line)
        autocast = "autocast" in options
        work(model, tokenizer, few, int(batch), autocast)
        if what == "training":  # the warm-up has put adapters on it
            model = load()
        found = work(model, tokenizer, task, int(batch), autocast)
        if what == "training":
            model = load()
        answer(found | {"rows": len(task["rows"]), "load_seconds": loaded})


if __name__ == "__main__":
    main()
