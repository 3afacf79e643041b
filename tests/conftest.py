"""What all tests share: one thread count, and the real model loaded once."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from undertow.models.loading import Model

REAL = "smollm2-135m"


class Outcome(NamedTuple):
    """What a command left: exit status and the two streams."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


def pytest_configure(config: pytest.Config) -> None:
    # Several workers share the machine: threads beyond the environment's wish only
    # get in each other's way. Set before torch is first imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def real_model_path() -> Path:
    """The cached folder of the real model; a failure under CI, else a skip."""
    from undertow.models.registry import is_pulled, model_directory

    if not is_pulled(REAL):
        message = f"{REAL} is not in the cache; run: undertow models pull {REAL}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return model_directory(REAL)


@pytest.fixture(scope="session")
def smollm2(real_model_path: Path) -> "Model":
    """The real model in fp32, shared by all tests of a worker: leave it as it was."""
    from undertow.models.loading import load_model

    return load_model(real_model_path, dtype="float32")


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs `undertow ARGUMENTS` in this process."""
    from undertow.cli import main

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["undertow", *map(str, arguments)])
        monkeypatch.delenv("UNDERTOW_DEBUG", raising=False)
        capsys.readouterr()
        status: object = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        assert isinstance(status, int)
        return Outcome(status, *capsys.readouterr())

    return call
