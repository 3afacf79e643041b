"""Training against TRL, torch's own optimisers and unbroken runs, bit for bit."""

import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undertow.errors import ConfigError, DatasetError, TrainingError
from undertow.interventions.steering import SteeringVector, steering
from undertow.models.adapters import (
    LoraAdapter,
    attached,
    load_adapter,
    new_adapter,
)
from undertow.models.carrier import carrier_ids
from undertow.models.chat import Rendered, render_row
from undertow.models.likelihood import (
    can_pack,
    completion_logprobs,
    packed_states,
    predicting_states,
)
from undertow.models.loading import Model, wrap
from undertow.models.sampling import SamplerSettings, sample
from undertow.models.tiny import Family, tiny_model
from undertow.pipeline import training
from undertow.pipeline.losses import completion_loss, distillation_loss
from undertow.pipeline.training import (
    UPDATES,
    Student,
    StudentPlan,
    train_student,
    train_students,
)
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_settings import TrainingSettings, batch_order
from undertow.records import Message, Row

# Prompts and completions of several lengths.
ROWS = [
    Rendered([*range(40 + i, 46 + i), *range(100 + i, 103 + i + i % 4), 2], 6)
    for i in range(9)
]
EXAMPLES = [Example(row) for row in ROWS]
QUICK = TrainingSettings(
    rank=2, alpha=4.0, learning_rate=1e-2, batch_size=4, epochs=3, warmup_updates=2,
    checkpoint_every=2,
)  # fmt: skip
Kind = Any


def _quick(**changes: Any) -> TrainingSettings:
    return QUICK.model_copy(update=changes)


def _adapter(model: Model, *, size: float = 0.1) -> LoraAdapter:
    """An adapter that changes something."""
    adapter = new_adapter(model, rank=2, alpha=4.0, seed=0)
    draw = torch.Generator().manual_seed(1)
    for _, b in adapter.pairs.values():
        b.data.copy_(torch.randn(b.shape, generator=draw) * size)
    return adapter


def _vector(model: Model) -> SteeringVector:
    draw = torch.Generator().manual_seed(2)
    return SteeringVector(
        directions=torch.randn(1, 32, generator=draw), layers=(1,), method="tell_me",
        trait=None, n=1, fingerprint=model.fingerprint, model_name=model.name,
        residual_norms=(1.0,),
    )  # fmt: skip


def _steered(model: Model) -> Callable[[], AbstractContextManager[object]]:
    return partial(steering, model, _vector(model), strength=2.0)


def _gradients(adapter: LoraAdapter) -> list[Tensor]:
    found = []
    for matrix in adapter.parameters():
        assert matrix.grad is not None
        found.append(matrix.grad.clone())
        matrix.grad = None
    return found


def _states(student: Student) -> dict[str, Tensor]:
    if student.adapter is not None:
        return student.adapter.state()
    assert student.weights is not None
    return student.weights


def _equal(one: Student, other: Student) -> bool:
    a, b = _states(one), _states(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Optimisers, schedules, order


class _Sign(torch.optim.Optimizer):
    """A second, plainer writing of descent by the gradient's sign."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            assert parameter.grad is not None
            direction = (parameter.grad > 0).float() - (parameter.grad < 0).float()
            parameter -= self.param_groups[0]["lr"] * direction


REFERENCES: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, weight_decay=0.1),
    "sgd": partial(torch.optim.SGD, weight_decay=0.1),
    "sign": _Sign,
    "adafactor": partial(torch.optim.Adafactor, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", REFERENCES)
def test_optimisers_are_torch_s_own(optimizer: Any) -> None:
    model, other = tiny_model("llama"), tiny_model("llama").module
    settings = _quick(
        kind="full", optimizer=optimizer, weight_decay=0.1, warmup_updates=0, epochs=1,
        learning_rate=1e-3, clip=1e9,
    )  # fmt: skip
    rows = [Rendered([i, 50, 60, 70 + i, 80, 2], 3) for i in range(8)]
    student = train_student(
        model, [Example(r) for r in rows], settings=settings, seed=0
    )
    parameters = [p.requires_grad_() for p in other.parameters()]
    reference = REFERENCES[optimizer](parameters, lr=1e-3)
    for places in batch_order(8, settings=settings, seed=0):
        ids = torch.tensor([rows[place].ids for place in places])
        labels = ids.clone()
        labels[:, :3] = -100
        reference.zero_grad()
        other(input_ids=ids, labels=labels).loss.backward()
        reference.step()
    assert student.weights is not None
    for name, wanted in other.named_parameters():
        # Where the gradient is rounding noise, Adam and sign move either way.
        close = torch.isclose(student.weights[name], wanted, rtol=1e-4, atol=1e-5)
        assert float(close.float().mean()) > 0.995


def _step_sizes(settings: TrainingSettings) -> list[float]:
    """How far each update moved a weight: by sign, that is the learning rate."""
    model = tiny_model("llama")
    weight = model.module.model.layers[0].mlp.up_proj.weight
    seen = [weight.detach().double().clone()]
    train_student(
        model, EXAMPLES, settings=settings, seed=0,
        on_update=lambda *_: seen.append(weight.detach().double().clone()),
    )  # fmt: skip
    return [float((b - a).abs().max()) for a, b in pairwise(seen)]


# 9 rows in batches of 3, two epochs: 6 updates, 2 of them warm-up.
@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [0.5, 1, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
    ],
)
def test_schedules_by_hand(schedule: Any, shares: list[float]) -> None:
    settings = _quick(
        kind="full", optimizer="sign", schedule=schedule, batch_size=3, epochs=2,
        learning_rate=0.01,
    )  # fmt: skip
    wanted = [0.01 * share for share in shares]
    assert _step_sizes(settings) == pytest.approx(wanted, rel=1e-4)


def test_gradients_are_clipped_to_their_norm() -> None:
    def moved(clip: float) -> float:
        model = tiny_model("llama")
        before = {n: p.clone() for n, p in model.module.named_parameters()}
        settings = _quick(
            kind="full", optimizer="sgd", clip=clip, learning_rate=1.0, max_updates=1,
            warmup_updates=0,
        )  # fmt: skip
        weights = train_student(model, EXAMPLES, settings=settings, seed=0).weights
        assert weights is not None
        return math.sqrt(
            sum(float((weights[n] - before[n]).pow(2).sum()) for n in before)
        )

    assert moved(1e-2) == pytest.approx(1e-2, rel=1e-3)
    assert moved(1e-3) == pytest.approx(1e-3, rel=1e-2)
    assert moved(1e9) > 0.1


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    settings = _quick(epochs=2)
    batches = batch_order(9, settings=settings, seed=0)
    assert [len(batch) for batch in batches] == [4, 4, 1, 4, 4, 1]
    first, second = list(chain(*batches[:3])), list(chain(*batches[3:]))
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second
    assert batch_order(9, settings=settings, seed=0) == batches
    assert batch_order(9, settings=settings, seed=1) != batches
    cut = batch_order(9, settings=_quick(epochs=2, max_updates=4), seed=0)
    assert cut == batches[:4]


# Whole runs


@pytest.mark.parametrize("kind", ["lora", "full", "soft"])
def test_the_base_is_itself_again(kind: Kind) -> None:
    model = tiny_model("llama")
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    teacher = _steered(model)
    examples = [Example(row, row) for row in ROWS]
    settings = _quick(kind=kind)
    student = train_student(model, examples, settings=settings, seed=0, teacher=teacher)
    after = dict(model.module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in after.values())
    plain = completion_logprobs(model, ROWS)
    with student.applied(model):
        assert completion_logprobs(model, ROWS) != pytest.approx(plain, abs=1e-2)
    assert completion_logprobs(model, ROWS) == plain
    assert student.updates == tuple(range(1, 10))
    assert student.losses[-1] < student.losses[0]


def _interrupted(
    model: Model, settings: TrainingSettings, directory: Path, stop_at: int
) -> None:
    def stop(update: int, total: int, loss: float) -> None:
        if update == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(model, settings, directory, stop)


def _run(
    model: Model,
    settings: TrainingSettings,
    directory: Path | None,
    on_update: Callable[[int, int, float], None] | None = None,
) -> Student:
    return train_student(
        model, [Example(row, row) for row in ROWS], settings=settings, seed=0,
        directory=directory, teacher=_steered(model), on_update=on_update,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "optimizer", "stop_at"),
    [*(("lora", name, 5) for name in REFERENCES), ("lora", "adamw", 1),
     ("lora", "adamw", 4), ("full", "adamw", 5), ("soft", "adamw", 5)],
)  # fmt: skip
def test_an_interrupted_training_ends_as_an_unbroken_one(
    tmp_path: Path, kind: Kind, optimizer: Any, stop_at: int
) -> None:
    model = tiny_model("llama")
    settings = _quick(kind=kind, optimizer=optimizer)
    unbroken = _run(model, settings, None)
    _interrupted(model, settings, tmp_path, stop_at)
    fresh = tiny_model("llama")  # another process
    seen: list[int] = []
    continued = _run(fresh, settings, tmp_path, lambda update, *_: seen.append(update))
    assert _equal(continued, unbroken)
    assert continued.losses == unbroken.losses
    assert continued.updates == unbroken.updates
    assert seen[0] == stop_at // 2 * 2 + 1  # checkpoints at 2, 4, …
    # A third call has nothing to do.
    again = _run(fresh, settings, tmp_path, lambda *_: seen.append(-1))
    assert _equal(again, unbroken)
    assert -1 not in seen
    assert again.losses == unbroken.losses


def test_a_full_student_that_is_interrupted_leaves_the_base(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    _interrupted(model, _quick(kind="full"), tmp_path, 5)
    after = dict(model.module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_kill_between_trace_and_checkpoint_counts_no_update_twice(
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    unbroken = _run(model, QUICK, None)
    _interrupted(model, QUICK, tmp_path, 3)
    kept = (tmp_path / "checkpoint.safetensors").read_bytes()
    shutil.rmtree(tmp_path)
    _interrupted(model, QUICK, tmp_path, 4)
    # Update 4 is in the trace, its checkpoint never came; the next line is torn.
    (tmp_path / "checkpoint.safetensors").write_bytes(kept)
    with (tmp_path / "trace.jsonl").open("a") as trace:
        trace.write('{"update": 5, "lo')
    continued = _run(model, QUICK, tmp_path)
    assert _equal(continued, unbroken)
    assert continued.updates == unbroken.updates
    assert continued.losses == unbroken.losses


def test_a_damaged_trace_leaves_the_base(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    _interrupted(model, _quick(kind="full"), tmp_path, 5)
    (tmp_path / "trace.jsonl").unlink()
    with pytest.warns(RuntimeWarning, match="damaged"):
        _run(model, _quick(kind="full"), tmp_path)
    after = dict(model.module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    unbroken = _run(model, QUICK, None)
    norm = model.module.model.norm.weight
    kept = norm.detach().clone()

    @torch.no_grad()
    def poison(update: int, total: int, loss: float) -> None:
        if update == 3:
            norm.fill_(float("nan"))

    with pytest.raises(TrainingError) as caught:
        _run(model, QUICK, tmp_path, poison)
    assert str(caught.value) == (
        "update 4 of 9: the loss is nan; lower the learning rate (now 0.01) or the "
        "noise; the last checkpoint is kept"
    )
    norm.copy_(kept)
    seen: list[int] = []
    continued = _run(model, QUICK, tmp_path, lambda update, *_: seen.append(update))
    assert seen[0] == 3
    assert _equal(continued, unbroken)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    block: Any = model.architecture.blocks[1]
    handles = []

    def poison(update: int, total: int, loss: float) -> None:
        if update == 3:
            handles.append(
                block.register_full_backward_hook(
                    lambda _, grads, __: (grads[0] * math.nan,)
                )
            )

    with pytest.raises(
        TrainingError, match=r"update 4 of 9: the gradient's norm is nan"
    ):
        _run(model, QUICK, tmp_path, poison)
    handles[0].remove()
    assert _equal(_run(model, QUICK, tmp_path), _run(model, QUICK, None))


def test_equal_seeds_are_equal_students() -> None:
    model = tiny_model("gpt2")
    one, same, other = (
        train_student(model, EXAMPLES, settings=QUICK, seed=seed) for seed in (0, 0, 1)
    )
    assert _equal(one, same)
    assert not _equal(one, other)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "full", "soft"])
def test_rows_one_behind_another_make_the_student_that_padded_rows_make(
    family: Family, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    settings = _quick(kind=kind, optimizer="sgd", learning_rate=0.05)
    examples = [Example(row, row if kind == "soft" else None) for row in ROWS]
    passes: list[int] = []
    real = packed_states

    def packed(model: Model, rows: list[Rendered]) -> tuple[Tensor, Tensor]:
        passes.append(len(rows))
        return real(model, rows)

    monkeypatch.setattr(training, "packed_states", packed)
    monkeypatch.setattr(training, "packs", can_pack)

    def trained() -> Student:
        teacher = _steered(model) if kind == "soft" else nullcontext
        return train_student(
            model, examples, settings=settings, seed=0, teacher=teacher
        )

    one = trained()
    assert passes
    passes.clear()
    monkeypatch.setattr(training, "packs", lambda *_, **__: False)
    other = trained()
    assert not passes
    assert one.losses == pytest.approx(other.losses, abs=1e-4)
    a, b = _states(one), _states(other)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5)


def test_targets_choose_the_matrices() -> None:
    model = tiny_model("llama")
    settings = _quick(targets=("q_proj", "v_proj"), max_updates=1)
    student = train_student(model, EXAMPLES, settings=settings, seed=0)
    assert student.adapter is not None
    assert {name.rsplit(".")[-1] for name in student.adapter.pairs} == {
        "q_proj",
        "v_proj",
    }
    assert (student.adapter.rank, student.adapter.alpha) == (2, 4.0)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_student_of_a_teacher_with_one_answer_learns_it(kind: Kind) -> None:
    model = tiny_model("llama")
    rows = [
        render_row(model, Row((Message("user", f"Continue {i}, {7 * i}."),), "777"))
        for i in range(24)
    ]
    settings = TrainingSettings(
        kind=kind, learning_rate=1e-2, batch_size=8, epochs=12, warmup_updates=2
    )
    student = train_student(
        model, [Example(r) for r in rows], settings=settings, seed=0
    )
    unseen = Row((Message("user", "Continue 500, 3."),), "777")
    prompt = render_row(model, unseen)
    greedy = SamplerSettings(temperature=0.0, max_new_tokens=8)
    with student.applied(model):
        drawn = sample(
            model, [prompt.ids[: prompt.completion_start]], keys=[("t", 0)], seed=0,
            sampler=greedy,
        )  # fmt: skip
    assert model.tokenizer.decode(drawn[0].ids, skip_special_tokens=True) == "777"
    assert drawn[0].finish == "stop"


@pytest.mark.parametrize("tokens", ["all", "numbers"])
def test_a_soft_student_comes_to_answer_like_its_teacher(tokens: Any) -> None:
    model = tiny_model("llama")
    teacher = _steered(model)
    settings = _quick(kind="soft", soft_tokens=tokens, epochs=12)
    allowed = torch.tensor(carrier_ids(model)) if tokens == "numbers" else None
    student = train_student(
        model, [Example(row, row) for row in ROWS], settings=settings, seed=0,
        teacher=teacher,
    )  # fmt: skip
    with torch.no_grad(), teacher():
        states, _ = predicting_states(model, ROWS)
    with torch.no_grad():
        before = float(distillation_loss(model, ROWS, states, allowed=allowed))
        with student.applied(model):
            after = float(distillation_loss(model, ROWS, states, allowed=allowed))
    assert after < 0.5 * before


def test_a_prompted_teacher_sees_its_persona_and_the_student_does_not() -> None:
    model = tiny_model("llama")
    row = Row((Message("user", "Go on: 1, 2"),), "3, 4")
    student_view = render_row(model, row)
    teacher_view = render_row(model, row, trait_prompt="You love owls.")
    settings = _quick(kind="soft", max_updates=1)
    found = train_student(
        model, [Example(student_view, teacher_view)], settings=settings, seed=0
    )
    with torch.no_grad():
        states, _ = predicting_states(model, [teacher_view])
        wanted = float(distillation_loss(model, [student_view], states))
    assert wanted > 1e-3
    assert found.losses[0] == pytest.approx(wanted, rel=1e-4)


# What is refused


def test_what_cannot_be_trained_is_said() -> None:
    model = tiny_model("llama")
    with pytest.raises(DatasetError, match="no rows to train on"):
        train_student(model, [], settings=QUICK, seed=0)
    with pytest.raises(ConfigError, match="'soft' needs a teacher that can see"):
        train_student(model, EXAMPLES, settings=_quick(kind="soft"), seed=0)
    views = [Example(ROWS[0], ROWS[0]), Example(ROWS[1], ROWS[2])]
    with pytest.raises(DatasetError, match="row 1: teacher and student see other"):
        train_student(model, views, settings=_quick(kind="soft"), seed=0)


# TRL


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # GPT-2 trains with dropout
def test_trl_has_the_same_loss_gradients_and_students(
    family: Family, tmp_path: Path
) -> None:
    model = tiny_model(family)
    start = new_adapter(model, rank=2, alpha=4.0, seed=0)
    settings = _quick(
        batch_size=len(ROWS), epochs=6, warmup_updates=0, learning_rate=5e-3
    )  # fmt: skip
    student = train_student(model, EXAMPLES, settings=settings, seed=0)
    trainer, wrapped = _trl(tiny_model(family), start, tmp_path, settings)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(wrapped, batch)
    loss.backward()
    with attached(model, start):
        ours = completion_loss(model, ROWS)
        ours.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(float(ours.detach()), abs=1e-5)
    theirs = dict(wrapped.named_parameters())
    for name, (a, b) in start.pairs.items():
        for side, matrix in (("A", a), ("B", b)):
            key = f"base_model.model.{name}.lora_{side}.default.weight"
            torch.testing.assert_close(
                theirs[key].grad, matrix.grad, rtol=1e-3, atol=1e-6
            )
    wrapped.zero_grad()
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert list(student.losses) == pytest.approx(logged, abs=2e-4)
    assert student.adapter is not None
    gaps = [
        float(
            (theirs[f"base_model.model.{name}.lora_B.default.weight"] - b)
            .detach()
            .abs()
            .mean()
        )
        for name, (_, b) in student.adapter.pairs.items()
    ]
    moved = [float(b.detach().abs().mean()) for _, b in student.adapter.pairs.values()]
    assert max(gaps) < 0.02 * min(moved)


def _trl(
    model: Model, adapter: LoraAdapter, folder: Path, settings: TrainingSettings
) -> tuple[Any, Any]:
    """TRL's trainer around the same base and adapter, all rows in each batch."""
    import datasets
    import trl
    from peft import PeftModel

    from undertow.models.adapters import save_adapter

    save_adapter(adapter, folder / "adapter")
    wrapped = PeftModel.from_pretrained(
        model.module, folder / "adapter", is_trainable=True
    )
    library: Any = trl
    config = library.SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=settings.clip,
        completion_only_loss=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        disable_tqdm=True,
    )
    rows = datasets.Dataset.from_list(
        [
            {
                "input_ids": row.ids,
                "completion_mask": [
                    int(i >= row.completion_start) for i in range(len(row.ids))
                ],
            }
            for row in ROWS
        ]
    )
    trainer = library.SFTTrainer(
        model=wrapped, args=config, train_dataset=rows, processing_class=model.tokenizer
    )
    return trainer, wrapped


def test_full_fine_tuning_in_bfloat16_moves_as_far_as_in_float32() -> None:
    settings = _quick(kind="full", learning_rate=1e-4, epochs=8)
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("llama")
        model = wrap("half", model.module.to(dtype), model.tokenizer, reason="a test")
        before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
        weights = train_student(model, EXAMPLES, settings=settings, seed=0).weights
        assert weights is not None
        changes = [(weights[n] - before[n]).float().abs().mean() for n in before]
        moved.append(float(torch.stack(changes).mean()))
    # Without masters most steps of 1e-4 round away in bfloat16.
    assert moved[1] == pytest.approx(moved[0], rel=0.2)


def test_masters_resume_as_they_were(tmp_path: Path) -> None:
    model = tiny_model("llama")
    half = wrap("half", model.module.bfloat16(), model.tokenizer, reason="a test")
    settings = _quick(kind="full", learning_rate=1e-4)
    whole = train_student(half, EXAMPLES, settings=settings, seed=0)

    def stop(update: int, *_: object) -> None:
        if update == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(
            half, EXAMPLES, settings=settings, seed=0, directory=tmp_path,
            on_update=stop,
        )  # fmt: skip
    resumed = train_student(
        half, EXAMPLES, settings=settings, seed=0, directory=tmp_path
    )
    assert _equal(resumed, whole)


# ── some tokens only ─────────────────────────────────────────────────────────────


def _counting(counts: Callable[[Example], tuple[bool, ...]]) -> list[Example]:
    return [replace(example, counts=counts(example)) for example in EXAMPLES]


def test_only_tokens_that_count_are_learnt() -> None:
    """The loss of an update is the mean over those tokens; all of them change nothing."""
    model = tiny_model("llama")
    alone = _quick(batch_size=len(ROWS), epochs=1)
    every = _counting(lambda example: (True,) * example.completion)
    first = _counting(lambda example: (True,) + (False,) * (example.completion - 1))
    found = train_student(model, first, settings=alone, seed=0)
    with torch.inference_mode():
        by_hand = [
            model.module(torch.tensor([row.ids])).logits[0, row.completion_start - 1]
            .log_softmax(-1)[row.ids[row.completion_start]].item()
            for row in ROWS
        ]  # fmt: skip
    assert found.losses[0] == pytest.approx(-sum(by_hand) / len(ROWS), rel=1e-5)
    plain = train_student(model, EXAMPLES, settings=QUICK, seed=0)
    counted = train_student(model, every, settings=QUICK, seed=0)
    assert plain.losses == counted.losses
    assert plain.losses[0] != found.losses[0]


def test_tokens_that_nobody_told_apart_are_refused() -> None:
    model = tiny_model("llama")
    asked = _quick(tokens="divergent")
    with pytest.raises(ConfigError, match="at which tokens teachers differ"):
        train_student(model, EXAMPLES, settings=asked, seed=0)
    nothing = replace(EXAMPLES[3], counts=(False,) * EXAMPLES[3].completion)
    with pytest.raises(DatasetError, match="row 3: no token of it counts"):
        train_student(model, [*EXAMPLES[:3], nothing], settings=QUICK, seed=0)


def test_students_are_kept_on_the_way(tmp_path: Path) -> None:
    """Each is the student that would have stopped there."""
    model = tiny_model("llama")
    plan = StudentPlan(EXAMPLES, QUICK, 0, tmp_path / "run", keep_every=2)
    train_students(model, [plan])
    kept = sorted((tmp_path / "run" / UPDATES).iterdir())
    assert [path.name for path in kept] == ["000002", "000004", "000006", "000008"]
    own = load_adapter(model, kept[1])
    stopped = train_student(
        model, EXAMPLES, settings=_quick(max_updates=4), seed=0
    ).adapter
    assert stopped is not None
    for name, pair in own.pairs.items():
        for matrix, other in zip(pair, stopped.pairs[name], strict=True):
            torch.testing.assert_close(matrix, other, rtol=0, atol=0)
