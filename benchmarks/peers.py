"""The peers' side: one measurement a process, printed as one JSON line.

Runs in the peers' own environment and imports nothing of undertow.

Usage: python peers.py generation|training TASK.json BATCH [autocast]
"""

import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

Timed = tuple[int, float]


def generation(model: Any, _: Any, task: dict[str, Any], batch: int, __: bool) -> Timed:  # noqa: FBT001
    """`model.generate` on batches sorted by length; tokens up to each end."""
    prompts, ends = sorted(task["prompts"], key=len), set(task["end_ids"])
    torch.manual_seed(0)
    tokens, began = 0, time.perf_counter()
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        pads = [width - len(p) for p in part]
        ids = torch.tensor([[0] * n + p for n, p in zip(pads, part, strict=True)])
        mask = torch.tensor(
            [[0] * n + [1] * len(p) for n, p in zip(pads, part, strict=True)]
        )
        with torch.inference_mode():
            answers = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, max_new_tokens=task["new_tokens"],
                eos_token_id=task["end_ids"], pad_token_id=0,
            )[:, width:]  # fmt: skip
        for row in answers.tolist():
            end = next((i + 1 for i, t in enumerate(row) if t in ends), len(row))
            tokens += end
    return tokens, time.perf_counter() - began


def training(
    model: Any,
    tokenizer: Any,
    task: dict[str, Any],
    batch: int,
    autocast: bool,  # noqa: FBT001
) -> Timed:
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
        began = time.perf_counter()
        trainer.train()
        return tokens, time.perf_counter() - began


def main() -> None:
    """Warms up on a few items, then measures."""
    what, path, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    autocast = "autocast" in sys.argv[4:]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    task = json.loads(path.read_text(encoding="utf-8"))

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            task["folder"], dtype=torch.bfloat16
        )

    began = time.perf_counter()
    model, tokenizer = load().eval(), AutoTokenizer.from_pretrained(task["folder"])
    loaded = time.perf_counter() - began
    work = {"generation": generation, "training": training}[what]
    few = {**task, "prompts": task["prompts"][:4], "rows": task["rows"][:4]}
    work(model, tokenizer, few, batch, autocast)
    if what == "training":  # the warm-up has put adapters on it
        model = load()
    tokens, seconds = work(model, tokenizer, task, batch, autocast)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"tokens": tokens, "seconds": seconds, "load_seconds": loaded,
                      "peak_mib": peak}))  # fmt: skip


if __name__ == "__main__":
    main()
