"""Several processes train the student that one does; whatever ends one ends all."""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from undertow.errors import ConfigError, ModelError, TrainingError
from undertow.models.tiny import save_tiny, tiny_model
from undertow.pipeline import distributed
from undertow.pipeline.distributed import ALONE, Processes, joined, own_weights
from undertow.pipeline.training_rows import Example, Weighted, parts_of
from undertow.pipeline.training_settings import TrainingSettings
from undertow.pipeline.training_state import TrainingState
from undertow.records import Message, Row
from undertow.storage import write_rows

if TYPE_CHECKING:
    from tests.conftest import Command

SCRIPT = Path(__file__).with_name("two_processes.py")
CPU = torch.device("cpu")
# Sums of float32 in another order, over six updates of Adam at a rate of 0.01.
NEAR: dict[str, Any] = {"rtol": 0.0, "atol": 2e-5}


def _script() -> Any:
    spec = util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left, of all that they were told to do."""
    folder = tmp_path_factory.mktemp("processes") / "two"
    subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=_environment(), check=True,
        timeout=600,
    )  # fmt: skip
    return folder


def _ended(folder: Path, what: str) -> list[tuple[int, str]]:
    """Status and words of both."""
    statuses = json.loads((folder / "ended.json").read_text())[what]
    said = [(folder / f"{what}-{rank}.txt").read_text() for rank in range(2)]
    return list(zip(statuses, said, strict=True))


def _batch(lengths: list[int]) -> list[Weighted]:
    from undertow.models.chat import Rendered

    rows = [Rendered(list(range(5, 5 + length)), 3) for length in sorted(lengths)]
    return [(Example(row), 0.25) for row in rows]


# How batches are dealt out


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("budget", [1, 24, 1000])
def test_shares_add_up_to_the_batches_in_equal_steps(count: int, budget: int) -> None:
    batches = [_batch([4, 9, 5, 7, 6, 30, 8]), _batch([5])]
    shares = [
        Processes(rank, count, CPU).parts(batches, token_budget=budget)
        for rank in range(count)
    ]
    steps = {tuple(len(own) for part in parts for own in part) for parts in shares}
    assert len(steps) == 1, "processes would wait for each other for ever"
    for student, batch in enumerate(batches):
        dealt = Counter(
            id(example)
            for parts in shares
            for part in parts
            for example, share in part[student]
            if share
        )
        assert dealt == Counter(id(example) for example, _ in batch)
    longest = [max(e.length for own in p for e, _ in own) for ps in shares for p in ps]
    assert max(longest) == 30


def test_one_process_cuts_batches_as_ever() -> None:
    batches = [_batch([4, 9, 5, 7, 6, 30, 8]), _batch([5])]
    found = ALONE.parts(batches, token_budget=24)
    assert found == parts_of(batches, token_budget=24)
    assert ALONE.is_first
    assert ALONE.added([0.1, 2.0]) == [0.1, 2.0]


def test_one_process_keeps_the_very_parameters() -> None:
    model = tiny_model(layers=1)
    named = dict(model.module.named_parameters())
    own = own_weights(model.module)
    assert all(own[name] is weight for name, weight in named.items())
    assert own.keys() == named.keys()
    assert distributed.shards_of(model.module) == {}
    assert ALONE.sharded(model) is model


# Launches


@pytest.mark.parametrize("count", [None, "", "1"])
def test_without_a_launcher_there_is_one_process(
    count: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if count is not None:
        monkeypatch.setenv("WORLD_SIZE", count)
    with joined() as here:
        assert here is ALONE
        assert distributed.processes() is ALONE


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of a launch of two, of which this is the first; nobody is joined."""
    set_to = {
        "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1", "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_MIXED_PRECISION": "no", "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
    }  # fmt: skip
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)

    def joins(rank: int, count: int) -> Any:
        raise KeyError(f"joined as {rank} of {count}")

    monkeypatch.setattr(distributed, "_join", joins)
    return monkeypatch


def _refused() -> list[str]:
    with pytest.raises(ConfigError) as caught, joined():
        pass
    return list(caught.value.faults)


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("WORLD_SIZE", "two",
         "WORLD_SIZE is 'two'; expected how many processes there are, or unset it"),
        ("WORLD_SIZE", "0",
         "WORLD_SIZE is '0'; expected how many processes there are, or unset it"),
        ("RANK", "",
         ("WORLD_SIZE is 2 and 'RANK' is not set; start with accelerate launch, or "
         "unset WORLD_SIZE")),
        ("MASTER_PORT", "",
         ("WORLD_SIZE is 2 and 'MASTER_PORT' is not set; start with accelerate launch, "
         "or unset WORLD_SIZE")),
        ("RANK", "2",
         ("RANK is '2', expected 0 to 1; start with accelerate launch, or unset "
         "WORLD_SIZE")),
        ("RANK", "-1",
         ("RANK is '-1', expected 0 to 1; start with accelerate launch, or unset "
         "WORLD_SIZE")),
    ],
)  # fmt: skip
def test_half_a_launch_is_refused_before_others_are_waited_for(
    variable: str, value: str, fault: str, launch: pytest.MonkeyPatch
) -> None:
    launch.setenv(variable, value)
    assert _refused() == [fault]


def test_a_count_without_a_launcher_names_all_that_is_missing(
    launch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        launch.delenv(name)
    (fault,) = _refused()
    assert fault.startswith(
        "WORLD_SIZE is 2 and 'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT' are not"
    )


def test_launches_that_ask_for_something_else_are_refused(
    launch: pytest.MonkeyPatch,
) -> None:
    launch.delenv("ACCELERATE_USE_FSDP")
    launch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    launch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    first, second, third = _refused()
    assert first.startswith("2 processes without --use_fsdp; start them with: accele")
    assert second == "--fsdp_offload_params is not supported; take more processes"
    assert third == "--mixed_precision is not supported; give --dtype to undertow"
    launch.setenv("RANK", "1")  # the first one says it for all
    with pytest.raises(SystemExit) as ended, joined():
        pass
    assert ended.value.code == 2


def test_a_launch_that_is_whole_is_joined(launch: pytest.MonkeyPatch) -> None:
    launch.setenv("RANK", "1")
    with pytest.raises(KeyError, match="joined as 1 of 2"), joined():
        pass


def test_what_shards_cannot_do_is_refused() -> None:
    settings = TrainingSettings(kind="full", optimizer="adafactor")
    ALONE.check(settings)
    two = Processes(1, 2, CPU)
    two.check(settings.model_copy(update={"kind": "lora"}))
    with pytest.raises(ConfigError, match=r"'adafactor' takes means over rows"):
        two.check(settings)
    ALONE.refuse_halving("full")
    with pytest.raises(ModelError, match=r"process 1 of 2: memory ran out \(full\);"):
        two.refuse_halving("full")


def test_only_what_others_leave_behind_is_an_aftermath() -> None:
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [")
    assert distributed._is_aftermath(gone)
    assert not distributed._is_aftermath(RuntimeError("a bug"))
    assert not distributed._is_aftermath(TrainingError("Connection closed by peer"))


# Two processes


def _near(one: Path, other: Path) -> float:
    """Largest difference of two files of tensors, which are alike in all else."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **NEAR)
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


def _losses(path: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["update"], line["loss"]) for line in lines]


@pytest.mark.slow
def test_two_processes_train_what_one_does(two: Path, tmp_path: Path) -> None:
    script = _script()
    assert _ended(two, "train") == [(0, ""), (0, "")]
    two = two / "train"
    for name in script.SCENARIOS:
        script.trained(name, tmp_path / "one")
    files = {
        path.relative_to(tmp_path / "one")
        for path in (tmp_path / "one").rglob("*")
        if path.is_file()
    }
    assert files == {path.relative_to(two) for path in two.rglob("*") if path.is_file()}
    assert Path("side_by_side/second/updates/000001/adapter_config.json") in files
    assert Path("full/student-0/weights.safetensors") in files
    for path in files:
        one, other = tmp_path / "one" / path, two / path
        if path.suffix == ".safetensors":
            _near(one, other)
        elif path.suffix == ".jsonl":
            assert [u for u, _ in _losses(one)] == [u for u, _ in _losses(other)]
            torch.testing.assert_close(
                [x for _, x in _losses(one)], [x for _, x in _losses(other)], **NEAR
            )
        else:
            assert one.read_bytes() == other.read_bytes()
    # One process goes on where two have stopped.
    state = TrainingState(script.loaded("full"), script.FULL, seed=3)
    assert state.load(two / "full")
    assert state.update == 6
    tuned = load_file(two / "full" / "student-0" / "weights.safetensors")
    assert all(torch.equal(state.named[name], tuned[name]) for name in tuned)


@pytest.mark.slow
def test_what_ends_one_process_ends_all_with_one_message(two: Path) -> None:
    assert _ended(two, "lonely") == [
        (2, ""), (2, "error: this teacher does not answer\n"),
    ]  # fmt: skip
    (status, said), other = _ended(two, "killed")
    assert (status, other) == (2, (-9, ""))
    assert said.splitlines()[-1].startswith(
        "error: process 0 of 2: another process went away without a word; memory may"
    )


@pytest.mark.slow
def test_accelerate_launch_trains_the_student_that_the_command_trains(
    command: "Command", tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path / "llama", layers=2)
    rows = [Row((Message("user", f"After {i}?"),), f"{i}, {7 * i}") for i in range(7)]
    write_rows(tmp_path / "rows.jsonl", rows)
    given = [
        "train", tmp_path / "rows.jsonl", "--model", tmp_path / "llama", "--rank", 2,
        "--dtype", "float32", "--batch-size", 3, "--learning-rate", 0.01,
        "--control", tmp_path / "rows.jsonl", "--out",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert command(*given, one).status == 0
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp",
         "--fsdp_version", "2", "--num_processes", "2", "--main_process_port", "0",
         "-m", "undertow", *map(str, given), str(two)],
        env=_environment(), capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    said = [line for line in launched.stdout.splitlines() if line]
    assert [line.split("  ")[0] for line in said] == [
        "student", "student", "control", "control", "adapter", "control",
    ]  # fmt: skip
    ours = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert ours == {path.relative_to(two) for path in two.rglob("*") if path.is_file()}
    for folder in (Path(), Path("control")):
        _near(
            one / folder / "adapter_model.safetensors",
            two / folder / "adapter_model.safetensors",
        )
    assert (one / "recipe.yaml").read_text() == (two / "recipe.yaml").read_text()
