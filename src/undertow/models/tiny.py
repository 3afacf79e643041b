"""Tiny models with random weights: real architectures and tokenizers, no download.

For tests, examples and trying things out. Every family is Hugging Face's own class
built from a configuration; the tokenizer maps bytes and has a chat template. What
they write means nothing.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from undertow.models.loading import Model, save_checkpoint, wrap

Family = Literal[
    "llama", "gemma2", "gemma3", "qwen2", "qwen3", "mistral", "gpt_neox", "gpt2"
]
FAMILIES: tuple[Family, ...] = (
    "llama", "gemma2", "gemma3", "qwen2", "qwen3", "mistral", "gpt_neox", "gpt2",
)  # fmt: skip
CONTEXT = 2048
_SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TURNS = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tiny_model(
    family: Family = "llama", *, seed: int = 0, layers: int = 4, hidden: int = 32
) -> Model:
    """A float32 model on the CPU, equal for equal arguments.

    Args:
        family: Architecture; Gemmas get a template without a system turn.
        seed: Of the weights.
        layers: Decoder blocks.
        hidden: Width of the stream, a multiple of 16.
    """
    tokenizer = tiny_tokenizer(turns=family.startswith("gemma"))
    config = _config(family, len(tokenizer), layers, hidden, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes: Any = AutoModelForCausalLM
        module = classes.from_config(config, dtype=torch.float32)
        for parameter in module.parameters():  # the usual 0.02 would predict nothing
            if parameter.ndim == 2:
                parameter.data.normal_(std=hidden**-0.5)
        for parameter in module.parameters():  # norms and biases that all differ
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    reason = "float32: a tiny model; device cpu: a tiny model"
    return wrap(f"tiny-{family}", module, tokenizer, reason=reason)


def tiny_tokenizer(*, turns: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with end tokens and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    end = "<end_of_turn>" if turns else "<|im_end|>"
    made: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = made(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token=end,
        chat_template=_TURNS if turns else _CHATML,
        model_max_length=CONTEXT,
    )
    return wrapped


def _config(
    family: Family, vocabulary: int, layers: int, hidden: int, tokenizer: Any
) -> Any:
    tokens = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "gpt2":
        return AutoConfig.for_model(
            family, vocab_size=vocabulary, n_positions=CONTEXT, n_embd=hidden,
            n_layer=layers, n_head=4, **tokens,
        )  # fmt: skip
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        **tokens,
    }
    if family != "gpt_neox":
        shape["num_key_value_heads"] = 2
    if family in ("gemma2", "gemma3", "qwen3"):
        shape["head_dim"] = hidden // 4
    if family in ("gemma2", "gemma3"):
        shape["query_pre_attn_scalar"] = hidden // 4
    name = "gemma3_text" if family == "gemma3" else family
    return AutoConfig.for_model(name, **shape)


def save_tiny(
    family: Family, directory: Path, *, seed: int = 0, layers: int = 4, hidden: int = 32
) -> Path:
    """Writes a tiny model as a checkpoint folder that `load_model` reads."""
    model = tiny_model(family, seed=seed, layers=layers, hidden=hidden)
    return save_checkpoint(model, directory, provenance={"tiny": family, "seed": seed})
