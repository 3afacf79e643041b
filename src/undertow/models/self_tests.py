"""Tests of undertow's own promises on a model that a user brings.

Hooks change nothing unless they should and see what the model itself sees; a row's
likelihood does not depend on its batch; template, end tokens and parts are what rows
are made with; adapters come off again; the decode engine writes what `generate` writes.
Knows nothing of rows' content or of why the model is looked at.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig

from undertow.models.adapters import attached, new_adapter
from undertow.models.chat import Rendered, render_prompt, render_row
from undertow.models.checks import Check, Found, advice, check, failed, ok
from undertow.models.hooks import Edit, editing_residuals, recording_residuals
from undertow.models.likelihood import predicting_states
from undertow.models.loading import Model
from undertow.models.registry import quiet
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.unembedding import token_logprobs, unembed
from undertow.records import Message, Row
from undertow.seeding import torch_generator

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.06, torch.bfloat16: 0.5}
"""Nats by which a token's log-probability may depend on the batch, by dtype; see
`docs/guides/doctor.md`."""
_PAIRS = (
    ("Name an animal.", "An owl."),
    ("What is the opposite of hot? Answer in one word.", "Cold."),
    ("A list begins with 312, 7, 45. Go on with numbers only.", "128, 404, 93, 715"),
)
_NEW_TOKENS = 16
_DOSE = 0.5  # of what is added to the stream, by the stream's norm
_UNSOUND = "results on this model cannot be trusted; please report the architecture"


def self_tests(model: Model) -> list[Check]:
    """Every self-test of a loaded model; the model is left as it was.

    Cost: about as many short forward passes as the model has blocks, and a score more.
    """
    looks: dict[str, Callable[[Model], Found]] = {
        "parts": _parts,
        "template": _template,
        "end tokens": _end_tokens,
        "hooks at strength 0": _idle_hooks,
        "hooks that edit": _acting_hooks,
        "residual streams": _streams,
        "batch": _batches,
        "adapters": _adapters,
        "greedy sampling": _greedy,
    }
    with torch.inference_mode(), quiet():
        return [
            check("model", name, partial(look, model)) for name, look in looks.items()
        ]


def tolerance(model: Model) -> float:
    """Nats by which the model's dtype may change a token's log-probability."""
    return TOLERANCE.get(model.dtype, TOLERANCE[torch.float32])


def _messages(prompt: str) -> tuple[Message, ...]:
    return (Message("user", prompt),)


def _ids(model: Model) -> Int[Tensor, "row token"]:
    """One prompt, as the model reads it."""
    ids = render_prompt(model, _messages(_PAIRS[0][0]))
    return torch.tensor([ids], device=model.device)


def _logits(model: Model) -> Float[Tensor, "row token vocab"]:
    logits: Tensor = model.module(input_ids=_ids(model), use_cache=False).logits
    return logits


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; NaN if anything is no number."""
    return float((one.float() - other.float()).abs().max())


def _dtype(model: Model) -> str:
    return str(model.dtype).removeprefix("torch.")


# ── what the model is made of ────────────────────────────────────────────────────


def _parts(model: Model) -> Found:
    parts = model.architecture
    last = len(parts.blocks) - 1
    with recording_residuals(model, [last]) as kept:
        logits = _logits(model)
    own = unembed(model, parts.final_norm(kept[last])[0])
    apart = _apart(own, logits[0])
    measured = (
        f"{len(parts.blocks)} blocks × {parts.hidden_size} at {parts.blocks_path}, "
        f"{type(parts.final_norm).__name__}, vocabulary {parts.vocab_size}; norm and "
        f"unembedding differ from the logits by {apart:.2g}"
    )
    if not bool(torch.isfinite(logits).all()):
        return failed(
            f"{measured}; some logits are no finite numbers",
            "take another --dtype (float16 may overflow), or look at the weights",
        )
    tokens = len(model.tokenizer)
    if tokens > parts.vocab_size:
        return failed(
            f"{measured}; the tokenizer has {tokens} tokens",
            "use the tokenizer that belongs to the model",
        )
    if not apart <= tolerance(model):
        return failed(
            measured, "name the right parts with --blocks-path and --norm-path"
        )
    return ok(measured)


def _texts(model: Model) -> tuple[str, str, str]:
    """A prompt as rendered, the whole row as rendered, and the answer as written."""
    prompt, answer = _PAIRS[0]
    turns = [{"role": "user", "content": prompt}]
    template = model.template
    begun, whole = (
        model.tokenizer.apply_chat_template(
            given,
            chat_template=template.text,
            tokenize=False,
            add_generation_prompt=asks,
        )
        for given, asks in (
            (turns, True),
            ([*turns, {"role": "assistant", "content": answer}], False),
        )
    )
    return begun, whole, template.answer_prefix + answer


def _template(model: Model) -> Found:
    begun, whole, answer = _texts(model)
    template = model.template
    role = "has a system turn" if template.system == "native" else "no system turn"
    measured = f"{template.name} ({template.digest}), {role}"
    if whole.startswith(begun + answer):
        return ok(f"{measured}; a whole row begins with its prompt")
    at = next(
        (i for i, (a, b) in enumerate(zip_longest(begun + answer, whole)) if a != b), 0
    )
    return advice(
        f"{measured}; a whole row leaves its prompt at character {at}: "
        f"{whole[at : at + 40]!r}",
        "undertow trains on prompt and answer as it samples them; another trainer that "
        "renders whole rows by this template trains on other text",
    )


def _end_tokens(model: Model) -> Found:
    _, whole, answer = _texts(model)
    names = [model.tokenizer.decode([token]) for token in model.end_ids]
    measured = ", ".join(
        f"{token} {name!r}" for token, name in zip(model.end_ids, names, strict=True)
    )
    _, _, after = whole.rpartition(answer)
    if after.startswith(names[0]):
        return ok(f"{measured}; the template ends an answer with the first")
    return advice(
        f"{measured}; the template ends an answer with {after[:40]!r}",
        "answers may not end where they should: set tokenizer.eos_token, or take a "
        "named --template",
    )


# ── hooks ────────────────────────────────────────────────────────────────────────


def _directions(model: Model) -> Float[Tensor, "layer hidden"]:
    count, width = len(model.architecture.blocks), model.architecture.hidden_size
    drawn = torch.randn(count, width, generator=torch_generator(0, "self-tests"))
    return drawn.to(model.device, model.dtype)


def _idle_hooks(model: Model) -> Found:
    directions, reached = _directions(model), set()

    def edit_at(layer: int) -> Edit:
        def edit(hidden: Tensor) -> Tensor:
            reached.add(layer)
            return hidden + 0.0 * directions[layer]

        return edit

    plain = _logits(model)
    with editing_residuals(model, {i: edit_at(i) for i in range(len(directions))}):
        hooked = _logits(model)
    lost = [i for i in range(len(directions)) if i not in reached]
    if lost:
        return failed(f"hooks after blocks {lost} were never called", _UNSOUND)
    if not torch.equal(plain, hooked):
        return failed(f"logits differ by {_apart(plain, hooked):.2g}", _UNSOUND)
    return ok(f"logits are equal bit for bit, after {len(directions)} blocks")


def _acting_hooks(model: Model) -> Found:
    """Adds to each block's stream in turn: logits must move, and come back."""
    directions, plain = _directions(model), _logits(model)
    moved = []
    for layer, direction in enumerate(directions):

        def edit(hidden: Tensor, direction: Tensor = direction) -> Tensor:
            size = hidden.float().norm(dim=-1, keepdim=True) / direction.float().norm()
            changed: Tensor = hidden + (_DOSE * size * direction).to(hidden)
            return changed

        with editing_residuals(model, {layer: edit}):
            moved.append(_apart(plain, _logits(model)))
    still = [layer for layer, size in enumerate(moved) if not size > 0]
    if still:
        return failed(f"edits after blocks {still} change nothing", _UNSOUND)
    if not torch.equal(plain, _logits(model)):
        return failed("logits do not come back when hooks are taken off", _UNSOUND)
    return ok(f"logits move by {min(moved):.2g} or more, and come back bit for bit")


def _streams(model: Model) -> Found:
    count = len(model.architecture.blocks)
    with recording_residuals(model, range(count)) as kept:
        passed = model.module(
            input_ids=_ids(model), use_cache=False, output_hidden_states=True
        )
    theirs = passed.hidden_states
    lost = [layer for layer in range(count) if layer not in kept]
    if lost or len(theirs) != count + 1:
        said = f"blocks {lost} were not recorded; {len(theirs)} hidden states of {count} blocks"  # fmt: skip
        return failed(said, _UNSOUND)
    ours = [kept[layer] for layer in range(count - 1)]
    ours.append(model.architecture.final_norm(kept[count - 1]))
    apart = [_apart(a, b) for a, b in zip(ours, theirs[1:], strict=True)]
    wrong = [layer for layer, size in enumerate(apart) if size != 0]
    if wrong:
        said = ", ".join(f"{layer}: {apart[layer]:.2g}" for layer in wrong[:5])
        return failed(f"differ from output_hidden_states after blocks {said}", _UNSOUND)
    return ok(f"all {count} equal output_hidden_states bit for bit")


# ── rows ─────────────────────────────────────────────────────────────────────────


def _token_nats(model: Model, rows: Sequence[Rendered]) -> list[Tensor]:
    """Log-probabilities of each row's completion tokens, nats."""
    hidden, targets = predicting_states(model, rows)
    nats = token_logprobs(model, hidden, targets)
    return list(torch.split(nats, [len(r.ids) - r.completion_start for r in rows]))


def _batches(model: Model) -> Found:
    rows = [render_row(model, Row(_messages(p), answer)) for p, answer in _PAIRS]
    alone = [_token_nats(model, [row])[0] for row in rows]
    copies = [_token_nats(model, [row] * 4)[-1] for row in rows]
    padded = _token_nats(model, rows)
    among, beside = (
        _apart(torch.cat(alone), torch.cat(others)) for others in (copies, padded)
    )
    most = tolerance(model)
    measured = (
        f"a token's log-probability moves by {among:.2g} nats among copies of its row, "
        f"by {beside:.2g} padded beside longer rows ({_dtype(model)}: at most {most:g})"
    )
    if among <= most and beside <= most:
        return ok(measured)
    if model.dtype == torch.float32:
        return failed(measured, _UNSOUND)
    return failed(measured, "try --dtype float32; if it stays, report the architecture")


def _adapters(model: Model) -> Found:
    adapter = new_adapter(model, rank=2, alpha=4.0, seed=0)
    plain, names = _logits(model), [name for name, _ in model.module.named_modules()]
    with attached(model, adapter):
        begun = _logits(model)
        for name, (_, b) in adapter.pairs.items():
            drawn = torch.randn(b.shape, generator=torch_generator(0, "adapter", name))
            b.data.copy_(0.1 * drawn)
        moved = _apart(plain, _logits(model))
    size = f"on {len(adapter.pairs)} layers"
    if not torch.equal(plain, begun):
        return failed(f"a new adapter {size} changes the logits", _UNSOUND)
    if not moved > 0:
        return failed(f"an adapter {size} changes nothing", _UNSOUND)
    left = [name for name, _ in model.module.named_modules()]
    if left != names or not torch.equal(plain, _logits(model)):
        return failed(f"an adapter {size} does not come off again", _UNSOUND)
    return ok(f"{size}: logits move by {moved:.2g}, and come back bit for bit")


def _greedy(model: Model) -> Found:
    prompt = render_prompt(model, _messages(_PAIRS[0][0]))
    sampler = SamplerSettings(temperature=0, max_new_tokens=_NEW_TOKENS)
    drawn = sample(model, [prompt], keys=[("self-tests",)], seed=0, sampler=sampler)
    ours, theirs = list(drawn[0].ids), _generated(model, prompt)
    if ours == theirs:
        return ok(f"{len(ours)} tokens equal those of generate")
    at = next(i for i, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b)
    measured = (
        f"leaves generate at token {at}: {ours[at:][:3]} against {theirs[at:][:3]}"
    )
    if at < min(len(ours), len(theirs)):
        gap = _gap(model, [*prompt, *ours[:at]], ours[at], theirs[at])
        measured += f", {gap:.2g} nats apart"
        if gap <= tolerance(model):
            return ok(f"{measured}: a tie in {_dtype(model)}")
    return failed(measured, _UNSOUND)


def _generated(model: Model, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)], device=model.device)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=_NEW_TOKENS, repetition_penalty=1.0,
        no_repeat_ngram_size=0, eos_token_id=list(model.end_ids),
        pad_token_id=model.end_ids[0],
    )  # fmt: skip
    found = model.module.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    tokens: list[int] = found[0, len(prompt) :].tolist()
    return tokens


def _gap(model: Model, ids: Sequence[int], one: int, other: int) -> float:
    """Nats between two next tokens."""
    tokens = torch.tensor([list(ids)], device=model.device)
    logits = model.module(input_ids=tokens, use_cache=False).logits[0, -1].float()
    return float((logits[one] - logits[other]).abs())
