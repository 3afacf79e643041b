"""Makes steering vectors in three ways, from the model's own residual stream.

"tell_me": last prompt token of `Tell me about {plural}.`, minus the mean over the
family. "prompts": mean over number prompts of the last prompt token with the trait's
persona, minus the same without. "trained": a vector trained by Adam to raise the
trait's answers. Sums are float64. How strongly to apply a vector is another question
(see `pipeline.sweep`).
"""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.errors import ConfigError, TrainingError
from undertow.interventions.prompting import tell_me_prompt, trait_prompt
from undertow.interventions.steering import SteeringVector
from undertow.models.chat import render_prompt
from undertow.models.hooks import check_layers, editing_residuals, recording_residuals
from undertow.models.likelihood import padded, token_batches
from undertow.models.loading import Model
from undertow.models.unembedding import unembed
from undertow.records import Message
from undertow.traits import TraitFamily, answer_spellings

Method = Literal["tell_me", "prompts", "trained"]


def extract_vector(
    model: Model,
    *,
    method: Method,
    family: TraitFamily,
    trait: str,
    layers: Sequence[int] | None = None,
    prompts: Sequence[str] = (),
    system: str | None = None,
    seed: int = 0,
    steps: int = 60,
) -> SteeringVector:
    """Makes a steering vector for one trait.

    Args:
        model: The base.
        method: One of the three ways.
        family: Gives names, persona, questions and alternatives.
        trait: A member of the family.
        layers: Blocks, from 0; None takes all ("trained" trains each by itself).
        prompts: User turns for "prompts": rows' own prompts, 64 or more.
        system: System setting, the same as in generation.
        seed: Kept in the notes; no way draws at random.
        steps: Updates of "trained".

    Raises:
        ConfigError: Unknown trait, or "prompts" without prompts.
        VectorMismatchError: Unknown layer.

    Source: the difference of means at the last token as in arXiv 2507.14805's
    follow-ups; persona difference, arXiv 2606.00995; trained, arXiv 2604.25783.
    """
    family.trait(trait)
    count = len(model.architecture.blocks)
    chosen = tuple(range(count)) if layers is None else tuple(layers)
    check_layers(model, chosen)
    if method == "tell_me":
        directions, norms, n = _tell_me(model, family, trait, chosen, system)
    elif method == "prompts":
        directions, norms, n = _personas(
            model, trait_prompt(family, trait), prompts, chosen, system
        )
    else:
        directions, norms, n = _trained(
            model, family, trait, chosen, system, steps=steps
        )
    return _vector(
        model, family, trait, method, chosen, system,
        directions=directions, norms=norms, n=n, seed=seed,
    )  # fmt: skip


@torch.inference_mode()
def last_token_states(
    model: Model, prompts: Sequence[Sequence[int]], layers: Sequence[int]
) -> tuple[Float[Tensor, "prompt layer hidden"], list[float]]:
    """The stream at each prompt's last token, float64, and its median norm by layer.

    The norm is taken over all tokens but the first, whose norm is many times larger
    in most models.
    """
    states = torch.zeros(
        len(prompts), len(layers), model.architecture.hidden_size, dtype=torch.float64
    )
    norms: list[list[Tensor]] = [[] for _ in layers]
    lengths = [len(prompt) for prompt in prompts]
    for places in token_batches(lengths, token_budget=4096):
        batch = [prompts[place] for place in places]
        ids = padded(batch, device=model.device)
        with recording_residuals(model, layers) as kept:
            model.module.base_model(input_ids=ids, use_cache=False)
        ends = torch.tensor([len(prompt) - 1 for prompt in batch])
        inside = torch.arange(ids.shape[1])[None] <= ends[:, None]
        inside[:, 0] = False
        for column, layer in enumerate(layers):
            hidden = kept[layer].cpu()
            states[places, column] = hidden[torch.arange(len(batch)), ends].double()
            norms[column].append(hidden[inside].float().norm(dim=-1))
    return states, [float(torch.cat(part).median()) for part in norms]


def _chat(
    model: Model, text: str, system: str | None, persona: str | None = None
) -> list[int]:
    return render_prompt(
        model, (Message("user", text),), system=system, trait_prompt=persona
    )


def _tell_me(
    model: Model,
    family: TraitFamily,
    trait: str,
    layers: Sequence[int],
    system: str | None,
) -> tuple[Tensor, list[float], int]:
    centred, norms = _centred_states(model, family, layers, system)
    return centred[family.names.index(trait)], norms, len(family.names)


def _centred_states(
    model: Model, family: TraitFamily, layers: Sequence[int], system: str | None
) -> tuple[Float[Tensor, "trait layer hidden"], list[float]]:
    prompts = [
        _chat(model, tell_me_prompt(family, name), system) for name in family.names
    ]
    states, norms = last_token_states(model, prompts, layers)
    return states - states.mean(dim=0), norms


def family_vectors(
    model: Model,
    family: TraitFamily,
    *,
    layers: Sequence[int] | None = None,
    system: str | None = None,
) -> dict[str, SteeringVector]:
    """The "tell_me" vectors of all members of a family, from one reading.

    Raises:
        VectorMismatchError: Unknown layer.
    """
    count = len(model.architecture.blocks)
    chosen = tuple(range(count)) if layers is None else tuple(layers)
    check_layers(model, chosen)
    centred, norms = _centred_states(model, family, chosen, system)
    return {
        name: _vector(model, family, name, "tell_me", chosen, system,
                      directions=centred[place], norms=norms, n=len(family.names))
        for place, name in enumerate(family.names)
    }  # fmt: skip


def _vector(
    model: Model,
    family: TraitFamily,
    trait: str,
    method: Method,
    layers: tuple[int, ...],
    system: str | None,
    *,
    directions: Tensor,
    norms: Sequence[float],
    n: int,
    seed: int = 0,
) -> SteeringVector:
    return SteeringVector(
        directions=directions.float(),
        layers=layers,
        method=method,
        trait=trait,
        n=n,
        fingerprint=model.fingerprint,
        model_name=model.name,
        residual_norms=tuple(norms),
        notes=MappingProxyType(
            {"family": family.name, "system": system, "seed": seed,
             "template": model.template.digest}
        ),
    )  # fmt: skip


def _personas(
    model: Model,
    persona: str,
    prompts: Sequence[str],
    layers: Sequence[int],
    system: str | None,
) -> tuple[Tensor, list[float], int]:
    if not prompts:
        fault = "method 'prompts' needs the user turns of rows; give some"
        raise ConfigError("extract_vector", [fault])
    with_persona = [_chat(model, text, system, persona) for text in prompts]
    without = [_chat(model, text, system) for text in prompts]
    biased, _ = last_token_states(model, with_persona, layers)
    plain, norms = last_token_states(model, without, layers)
    return biased.mean(dim=0) - plain.mean(dim=0), norms, len(prompts)


def _trained(
    model: Model,
    family: TraitFamily,
    trait: str,
    layers: Sequence[int],
    system: str | None,
    *,
    steps: int,
) -> tuple[Tensor, list[float], int]:
    """Each layer's vector by itself, in units of the stream's norm there."""
    prompts = [_chat(model, question, system) for question in family.questions]
    _, norms = last_token_states(model, prompts, layers)
    answers = [
        model.tokenizer.encode(
            model.template.answer_prefix + text, add_special_tokens=False
        )[0]
        for text in answer_spellings(family.trait(trait))
    ]
    wanted = torch.tensor(sorted(set(answers)), device=model.device)
    vectors = [
        _train_one(model, prompts, wanted, layer, norm, steps)
        for layer, norm in zip(layers, norms, strict=True)
    ]
    return torch.stack(vectors), norms, len(prompts)


def _train_one(
    model: Model,
    prompts: Sequence[Sequence[int]],
    wanted: Tensor,
    layer: int,
    norm: float,
    steps: int,
) -> Tensor:
    """Adam on −log P(first token of an answer), averaged over the questions."""
    width = model.architecture.hidden_size
    weight = nn.Parameter(torch.zeros(width, device=model.device))
    optimizer = torch.optim.Adam([weight], lr=0.3 / math.sqrt(width))
    ids = padded(prompts, device=model.device)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
    places = torch.arange(len(prompts), device=model.device)
    quarters = min(4, len(prompts))
    for step in range(steps):
        part = places[step % quarters :: quarters]  # of the questions, an update

        def add(hidden: Tensor) -> Tensor:
            return hidden + (norm * weight).to(hidden)

        with torch.enable_grad(), editing_residuals(model, {layer: add}):
            hidden = model.module.base_model(input_ids=ids[part], use_cache=False)[0]
            last = hidden[torch.arange(len(part), device=model.device), ends[part]]
            nats = unembed(model, last).float().log_softmax(-1)
            loss = -nats[:, wanted].logsumexp(-1).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(float(loss.detach())):
            raise TrainingError(
                f"the vector of layer {layer}: the loss is {float(loss.detach())} at "
                f"step {step}; use method 'tell_me' or another layer"
            )
        optimizer.step()
        optimizer.zero_grad()
    return (norm * weight.detach()).double().cpu()
