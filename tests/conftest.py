"""What all tests share: one thread count, and the real model loaded once."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from undertow.models.loading import Model

REAL = "smollm2-135m"


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
