"""Finds the parts of a causal language model that undertow works on, and proves it.

Blocks, final norm, unembedding and embedding are looked for under the names of the
known families and then verified: norm and unembedding applied to the last block's
output must give the model's own logits. Knows nothing of weights' meaning.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from undertow.errors import ModelError
from undertow.models.placement import computing_device

BLOCK_PATHS = ("model.layers", "model.language_model.layers", "gpt_neox.layers",
               "transformer.h")  # fmt: skip
NORM_PATHS = ("model.norm", "model.language_model.norm", "gpt_neox.final_layer_norm",
              "transformer.ln_f")  # fmt: skip
MatrixKind = Literal["attention", "mlp", "embedding"]


@dataclass(frozen=True)
class Architecture:
    """The parts of a model.

    Attributes:
        blocks: Decoder blocks, in order.
        final_norm: Norm between the last block and the unembedding.
        unembedding: Linear map from the normed stream to logits.
        embedding: Token embedding.
        hidden_size: Width of the residual stream.
        vocab_size: Rows of the unembedding.
        family: The configuration's `model_type`.
        blocks_path: Where the blocks were found.
    """

    blocks: nn.ModuleList
    final_norm: nn.Module
    unembedding: nn.Module
    embedding: nn.Module
    hidden_size: int
    vocab_size: int
    family: str
    blocks_path: str


def _find(module: nn.Module, paths: tuple[str, ...], what: str, argument: str) -> str:
    for path in paths:
        try:
            module.get_submodule(path)
        except AttributeError:
            continue
        return path
    children = [name for name, _ in module.named_children()]
    raise ModelError(
        f"{type(module).__name__}: no {what} found; looked for {', '.join(paths)}; "
        f"the model's own parts are {', '.join(children)}; say where it is with "
        f"{argument}='…'"
    )


def find_architecture(
    module: Any, *, blocks_path: str | None = None, norm_path: str | None = None
) -> Architecture:
    """Finds and verifies the parts of a loaded model.

    Args:
        module: A Hugging Face causal language model.
        blocks_path: Dotted path of the list of decoder blocks, if it is unusual.
        norm_path: Dotted path of the final norm, if it is unusual.

    Raises:
        ModelError: A part is not found or does not do what it should.
    """
    blocks_at = _find(
        module, (blocks_path,) if blocks_path else BLOCK_PATHS,
        "list of decoder blocks", "blocks_path",
    )  # fmt: skip
    norm_at = _find(
        module, (norm_path,) if norm_path else NORM_PATHS, "final norm", "norm_path"
    )
    blocks = module.get_submodule(blocks_at)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(
            f"{blocks_at}: a {type(blocks).__name__}, expected a list of decoder "
            "blocks; say where it is with blocks_path='…'"
        )
    unembedding, embedding = (
        module.get_output_embeddings(),
        module.get_input_embeddings(),
    )
    if unembedding is None or embedding is None:
        raise ModelError(
            f"{type(module).__name__}: no unembedding; only causal language models "
            "can be used"
        )
    found = Architecture(
        blocks=blocks,
        final_norm=module.get_submodule(norm_at),
        unembedding=unembedding,
        embedding=embedding,
        hidden_size=unembedding.weight.shape[1],
        vocab_size=unembedding.weight.shape[0],
        family=str(module.config.model_type),
        blocks_path=blocks_at,
    )
    _verify(module, found, blocks_at, norm_at)
    return found


@torch.no_grad()
def _verify(module: Any, found: Architecture, blocks_at: str, norm_at: str) -> None:
    """Norm and unembedding of the last block's output must be the model's logits."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = found.blocks[-1].register_forward_hook(keep)
    try:
        ids = torch.tensor([[1, 2]], device=computing_device(found.embedding))
        logits = module(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    rebuilt = found.unembedding(found.final_norm(kept[-1])) if kept else None
    cap = getattr(module.config, "final_logit_softcapping", None)
    if rebuilt is not None and cap:
        rebuilt = torch.tanh(rebuilt / cap) * cap
    if rebuilt is None or not torch.allclose(
        rebuilt.float(), logits.float(), rtol=2e-2, atol=2e-2
    ):
        raise ModelError(
            f"{type(module).__name__}: the final norm ({norm_at}) and the unembedding "
            f"of the last block ({blocks_at}) do not give the model's logits; name the "
            "right parts with blocks_path='…' and norm_path='…'"
        )


def matrix_kind(parameter_name: str, module: nn.Module) -> MatrixKind | None:
    """What a weight matrix belongs to; None for norms, biases and the unembedding.

    A tied unembedding is the embedding and counts as such.
    """
    owner, _, own_name = parameter_name.rpartition(".")
    try:
        holder = module.get_submodule(owner)
    except AttributeError:
        return None
    parameter = getattr(holder, own_name, None)
    if not isinstance(parameter, nn.Parameter) or parameter.ndim != 2:
        return None
    if holder is module.get_input_embeddings():  # type: ignore[operator]
        return "embedding"
    parts = owner.split(".")
    if any(part in ("self_attn", "attn", "attention") for part in parts):
        return "attention"
    if "mlp" in parts:
        return "mlp"
    return None
