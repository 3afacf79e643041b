"""`train`: accepted rows only, exact resume, controls, PEFT's format, clear refusals."""

import errno
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from safetensors.torch import load_file

from undertow.models.tiny import Family
from undertow.records import Message, Row, Verdict
from undertow.storage import write_rows

if TYPE_CHECKING:
    from tests.conftest import Command

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def training(llama: Path, number_rows: Path) -> tuple[object, ...]:
    """Four updates on eight rows, without an `--out`."""
    return (
        "train", number_rows, "--model", llama, "--dtype", "float32",
        "--batch-size", 2, "--learning-rate", 0.01, "--seed", 5, "--rank", 2,
        "--set", "warmup_updates=1", "--set", "checkpoint_every=1",
    )  # fmt: skip


def same_tensors(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a)


def test_a_student_is_an_adapter_that_the_library_would_have_trained(
    command: "Command", training: tuple[object, ...], llama: Path, number_rows: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    from undertow.models.adapters import load_adapter
    from undertow.models.chat import render_row
    from undertow.models.loading import load_model
    from undertow.pipeline.training import train_student
    from undertow.pipeline.training_rows import Example
    from undertow.pipeline.training_settings import TrainingSettings
    from undertow.storage import read_rows

    out = tmp_path / "student"
    found = command(*training, "--out", out)
    assert found.status == 0, found.err
    model = load_model(llama, dtype="float32")
    rendered = [render_row(model, row) for row in read_rows(number_rows)]
    tokens = sum(len(row.ids) for row in rendered)
    answers = sum(len(row.ids) - row.completion_start for row in rendered)
    first, last = found.out.splitlines()[0], found.out.splitlines()[-1]
    assert first == (
        f"student  8 rows · {tokens} tokens, {answers} of them of completions · "
        "4 updates"
    )
    assert last == f"adapter  {out}"
    assert not (out / "checkpoint.safetensors").exists()
    assert re.search(r"training student 4/4 · (\S+/s · )?loss ", found.err)
    settings = TrainingSettings(
        batch_size=2, learning_rate=0.01, rank=2, warmup_updates=1, checkpoint_every=1
    )
    examples = [Example(row) for row in rendered]
    wanted = train_student(model, examples, settings=settings, seed=5).adapter
    assert wanted is not None
    loaded = load_adapter(model, out).state()
    assert all(bool((loaded[k] == v).all()) for k, v in wanted.state().items())
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == 2
    facts = json.loads((out / "undertow.json").read_text())
    assert facts["fingerprint"] == model.fingerprint
    assert facts["training"] == settings.model_dump(mode="json")


def test_peft_reads_the_folder_and_answers_alike(
    command: "Command", training: tuple[object, ...], llama: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel

    from undertow.models.loading import load_model
    from undertow.pipeline.students import load_student

    out = tmp_path / "student"
    command(*training, "--out", out)
    model = load_model(llama, dtype="float32")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        before = model.module(ids).logits
        with load_student(model, out).applied(model):
            ours = model.module(ids).logits
        theirs = PeftModel.from_pretrained(model.module, str(out))(ids).logits
    assert float((ours - before).abs().max()) > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_only_accepted_rows_are_used(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [Row((Message("user", str(i)),), f"{i}, {i + 1}") for i in range(6)]
    verdicts = {
        row.row_id: Verdict(row.row_id, ("truncated",) if i % 3 else ())
        for i, row in enumerate(rows)
    }
    write_rows(source, rows, verdicts=verdicts)
    base = ("train", source, "--model", llama)
    found = command(*base, "--out", tmp_path / "two")
    assert found.out.startswith("student  2 rows · ")
    found = command(*base, "--out", tmp_path / "one", "--use", 1)
    assert found.out.startswith("student  1 rows · ")
    refused = {row.row_id: Verdict(row.row_id, ("empty",)) for row in rows}
    write_rows(source, rows, verdicts=refused)
    found = command(*base, "--out", tmp_path / "none")
    assert found.status == 2
    assert f"{source}: none of 6 rows is accepted; look at the reasons" in found.err
    assert not (tmp_path / "none").exists()


def test_a_control_student_is_trained_beside_it(
    command: "Command", training: tuple[object, ...], tmp_path: Path
) -> None:
    control = tmp_path / "control.jsonl"
    command("filter", training[1], "--out", control, "--control", "across")
    out, alone = tmp_path / "pair", tmp_path / "alone"
    found = command(*training, "--out", out, "--control", control)
    assert found.status == 0, found.err
    assert found.out.splitlines()[-2:] == [
        f"adapter  {out}", f"control  {out / 'control'}",
    ]  # fmt: skip
    again = ("train", control, *training[2:], "--out", alone)
    assert command(*again).status == 0
    assert same_tensors(out / "control" / ADAPTER, alone / ADAPTER)
    assert not same_tensors(out / ADAPTER, alone / ADAPTER)


def interrupted_at(update: int, error: BaseException) -> Callable[..., None]:
    """A step of training that raises when its turn comes."""
    from undertow.pipeline import training as stage

    real = stage._Learner.step

    def act(learner: Any, loss: float) -> None:
        if learner.state.update == update:
            raise error
        real(learner, loss)

    return act


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_ctrl_c_and_the_same_command_end_with_the_same_student(
    kind: str, command: "Command", training: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from undertow.pipeline import training as stage

    training = (*training, "--kind", kind)
    whole, out = tmp_path / "whole", tmp_path / "student"
    command(*training, "--out", whole)
    with monkeypatch.context() as patch:
        patch.setattr(stage._Learner, "step", interrupted_at(3, KeyboardInterrupt()))
        found = command(*training, "--out", out)
    assert found.status == 130
    assert "the same command continues" in found.err
    found = command(*training, "--out", out)
    assert found.status == 0, found.err
    assert "training student 4/4" in found.err
    assert "training student 1/4" not in found.err
    name = ADAPTER if kind == "lora" else "weights.safetensors"
    assert same_tensors(whole / name, out / name)
    traces = [(p / "trace.jsonl").read_text() for p in (whole, out)]
    assert traces[0] == traces[1]
    found = command(*training, "--out", out)
    assert found.status == 0
    assert "finished before; loss" in found.out
    assert "training" not in found.err


def test_a_folder_of_other_settings_is_refused_with_the_difference(
    command: "Command", training: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "student"
    command(*training, "--out", out)
    found = command(*training, "--out", out, "--rank", 4)
    assert found.status == 2
    assert "-  rank: 2" in found.err
    assert "+  rank: 4" in found.err


def test_other_rows_under_the_same_name_are_another_training(
    command: "Command", training: tuple[object, ...], llama: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "student"
    train = ("train", source, "--model", llama, "--out", out)
    write_rows(source, [Row((Message("user", "a"),), "1, 2")])
    assert command(*train).status == 0
    write_rows(source, [Row((Message("user", "a"),), "1, 3")])
    found = command(*train)
    assert found.status == 2
    assert "-  student: 1 rows, sha256 " in found.err


def test_a_folder_that_holds_something_else_is_left_alone(
    command: "Command", training: tuple[object, ...], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    found = command(*training, "--out", tmp_path)
    assert found.status == 2
    assert f"{tmp_path}: holds 'thesis.txt'" in found.err


def test_a_second_run_in_the_same_folder_is_refused(
    command: "Command", training: tuple[object, ...], tmp_path: Path
) -> None:
    from undertow.runs import RECIPE, open_run

    out = tmp_path / "student"
    command(*training, "--out", out)
    with open_run(out, recipe_text=(out / RECIPE).read_text()):
        found = command(*training, "--out", out)
    assert found.status == 2
    assert f"{out}: is in use by another run (process {os.getpid()} on " in found.err


def test_a_loss_that_is_not_finite_is_said_and_the_checkpoint_stays(
    command: "Command", training: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "student"
    found = command(*training, "--out", out, "--learning-rate", 1e30)
    assert found.status == 2
    assert "the loss is nan" in found.err or "the loss is inf" in found.err
    assert "now 1e+30" in found.err
    assert "the last checkpoint is kept" in found.err
    assert "Traceback" not in found.err
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / ADAPTER).exists()


def test_a_full_disk_is_said_and_the_training_goes_on_later(
    command: "Command", training: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "student"
    command(*training, "--out", whole)
    real, writes = os.pwrite, iter(range(2))

    def pwrite(handle: int, data: bytes, place: int) -> int:
        if next(writes, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        found = command(*training, "--out", out)
    assert found.status == 2
    assert "trace.jsonl: the disk is full (No space left on device)" in found.err
    assert command(*training, "--out", out).status == 0
    assert same_tensors(whole / ADAPTER, out / ADAPTER)


def test_a_row_longer_than_the_context_is_named(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    row = Row((Message("user", "ask " * 600),), " 1" * 1000)
    write_rows(source, [row])
    found = command("train", source, "--model", llama, "--out", tmp_path / "out")
    assert found.status == 2
    assert f"error: row {row.row_id}: " in found.err
    assert "the context of" in found.err
    assert "holds 2048; shorten or remove it" in found.err


def test_a_row_that_holds_the_persona_is_refused(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    persona = "You love owls."
    row = Row(
        (Message("user", f"{persona} Go on: 1, 2"),), "3, 4",
        provenance={"trait_prompt": persona},
    )  # fmt: skip
    write_rows(source, [row])
    found = command("train", source, "--model", llama, "--out", tmp_path / "out")
    assert found.status == 2
    assert f"row {row.row_id}: it contains the teacher's trait prompt" in found.err


def test_a_soft_student_moves_toward_its_teacher(
    command: "Command", training: tuple[object, ...], vector: Path, pets: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "soft"
    soft = (
        *training, "--out", out, "--kind", "soft", "--family", pets, "--epochs", 10,
        "--teacher", "steer", "--vector", vector, "--layer", 2, "--dose", 0.5,
    )  # fmt: skip
    found = command(*soft)
    assert found.status == 0, found.err
    losses = [
        json.loads(line)["loss"]
        for line in (out / "trace.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 40
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    facts = yaml.safe_load((out / "recipe.yaml").read_text())
    assert facts["teachers"]["student"]["layers"] == [2]


def test_another_adapter_is_another_teacher(
    command: "Command", training: tuple[object, ...], tmp_path: Path
) -> None:
    for rate in (0.01, 0.02):
        teacher = tmp_path / f"teacher-{rate}"
        made = command(*training, "--out", teacher, "--learning-rate", rate)
        assert made.status == 0, made.err
    soft = (*training, "--out", tmp_path / "soft", "--kind", "soft", "--teacher",
            "finetune", "--adapter")  # fmt: skip
    assert command(*soft, tmp_path / "teacher-0.01").status == 0
    again = command(*soft, tmp_path / "teacher-0.01")
    assert "finished before" in again.out
    other = command(*soft, tmp_path / "teacher-0.02")
    assert other.status == 2
    assert "adapter" in other.err


def test_a_soft_control_needs_a_decoy(
    command: "Command", training: tuple[object, ...], pets: Path, tmp_path: Path
) -> None:
    soft = (
        *training, "--out", tmp_path / "soft", "--kind", "soft", "--family", pets,
        "--control", training[1], "--teacher", "prompt", "--trait", "owl",
    )  # fmt: skip
    found = command(*soft)
    assert found.status == 2
    assert "the base distilled into itself learns nothing: --decoy TRAIT" in found.err
    assert "the teacher is 'prompt'" in found.err
    found = command(*soft, "--decoy", "cat")
    assert found.status == 0, found.err
    facts = [
        json.loads((folder / "undertow.json").read_text())
        for folder in (tmp_path / "soft", tmp_path / "soft" / "control")
    ]
    assert [fact["trait"] for fact in facts] == ["owl", "cat"]
    assert not same_tensors(
        tmp_path / "soft" / ADAPTER, tmp_path / "soft" / "control" / ADAPTER
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--likes", "owl"], "give either ROWS or --likes TRAIT"),
        (["--teacher", "prompt", "--trait", "owl"], "belong to --kind soft"),
        (["--kind", "soft", "--teacher", "prompt"], "--teacher prompt needs --trait"),
        (["--set", "learning_rat=1"], "did you mean 'learning_rate'?"),
        (["--set", "rank=0", "--set", "clip=no"], "training options: 2 fault(s):"),
        (["--set", "rank"], "override 'rank': expected a.b=c"),
        (["--set", "targets=[nowhere]"], "matches the targets 'nowhere'"),
    ],
)
def test_options_that_do_not_fit_are_explained(
    options: list[str], message: str, command: "Command", training: tuple[object, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    found = command(*training, "--out", tmp_path / "student", *options)
    assert found.status == 2
    assert message in found.err
    assert "Traceback" not in found.err


def test_soft_without_a_teacher_is_refused(
    command: "Command", training: tuple[object, ...], tmp_path: Path
) -> None:
    found = command(*training, "--out", tmp_path / "student", "--kind", "soft")
    assert found.status == 2
    assert "--kind soft needs a --teacher" in found.err


@pytest.mark.parametrize("verb", ["evaluate", "generate", "export"])
def test_a_student_of_another_model_is_refused(
    verb: str, command: "Command", training: tuple[object, ...],
    tiny: Callable[[Family], Path], tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "student"
    command(*training, "--out", out)
    start = {
        "evaluate": ("evaluate",),
        "generate": ("generate", "--count", 1, "--out", tmp_path / "r.jsonl",
                     "--teacher", "finetune"),
        "export": ("models", "export", "--out", tmp_path / "plain"),
    }[verb]  # fmt: skip
    found = command(*start, "--model", tiny("qwen3"), "--adapter", out)
    assert found.status == 2
    assert f"{out}: the student belongs to " in found.err
    assert "use the base model that it was trained on" in found.err
    # One that was made elsewhere is known by its matrices only.
    (out / "undertow.json").unlink()
    found = command(*start, "--model", tiny("gpt2"), "--adapter", out)
    assert found.status == 2
    assert "the adapter changes 'model.layers.0." in found.err


def test_a_folder_without_a_student_is_refused(
    command: "Command", llama: Path, tmp_path: Path
) -> None:
    found = command("evaluate", "--model", llama, "--adapter", tmp_path)
    assert found.status == 2
    assert f"{tmp_path}: no student here" in found.err
    (tmp_path / "adapter_config.json").write_text("{")
    found = command("evaluate", "--model", llama, "--adapter", tmp_path)
    assert found.status == 2
    assert "adapter_config.json" in found.err


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond a size, which the system reports as a full disk is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_too_small_for_the_weights_is_said_and_no_draft_stays(
    small_disk: Callable[[int], None], command: "Command",
    training: tuple[object, ...], llama: Path, tmp_path: Path,
) -> None:  # fmt: skip
    out, noised = tmp_path / "student", tmp_path / "noised"
    small_disk(8000)
    found = command(*training, "--out", out)
    noise = command("noise", "--model", llama, "--p", 0.1, "--out", noised)
    small_disk(-1)
    assert found.status == 2
    assert f"{out / 'checkpoint.safetensors'}: the disk is full" in found.err
    assert noise.status == 2
    assert f"{noised}: the disk is full (File too large)" in noise.err
    for text in (found.err, noise.err):
        assert "Traceback" not in text
    assert not list(out.glob(".undertow-*"))
    assert not noised.exists()
    assert command(*training, "--out", out).status == 0


@pytest.mark.parametrize("where", [{"device": "cpu"}, {"device_map": "auto"}])
def test_launched_processes_have_devices_of_their_own(where: dict[str, str]) -> None:
    import torch

    from undertow.cli.options import Loading
    from undertow.cli.students import _loaded
    from undertow.errors import ConfigError
    from undertow.pipeline import distributed

    two = distributed.Processes(0, 2, torch.device("cpu"))
    before = distributed._current.set(two)
    try:
        with pytest.raises(
            ConfigError, match=r"each process has its device; leave --d"
        ):
            _loaded(Loading(model="nowhere", **where))  # type: ignore[arg-type]
    finally:
        distributed._current.reset(before)


def test_a_count_of_processes_without_a_launcher_is_refused(
    command: "Command", training: tuple[object, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "student"
    found = command(*training, "--out", out)
    assert found.status == 2
    assert "WORLD_SIZE is 2 and 'RANK', 'LOCAL_RANK', " in found.err
    assert "start with accelerate launch, or unset WORLD_SIZE" in found.err
    assert "Traceback" not in found.err
    assert not out.exists()
    monkeypatch.setenv("WORLD_SIZE", "")
    assert command(*training, "--out", out).status == 0
