"""The kernels are built once for a machine, and their absence is said, not hidden."""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from undertow.models import kernels as module
from undertow.models.kernels import kernels


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("UNDERTOW_KERNELS", raising=False)
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "cache"))
    kernels.cache_clear()
    yield
    kernels.cache_clear()


def _refused() -> str:
    """Why there are none."""
    found = kernels()
    assert found.library is None
    return found.reason


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")


@needs_gcc
def test_they_are_built_once_and_found_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = kernels()
    assert first.library is not None, first.reason
    assert "gcc" in first.reason
    (library,) = (tmp_path / "cache" / "kernels").iterdir()
    assert library.suffix == ".so"

    def only_the_version(*command: str) -> str:
        assert command[1] == "-dumpfullversion"
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    monkeypatch.setattr(module, "_run", only_the_version)
    kernels.cache_clear()
    assert kernels().library is not None


@needs_gcc
def test_another_processor_gets_a_library_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels()
    monkeypatch.setattr(module, "_processor", lambda: "another")
    kernels.cache_clear()
    kernels()
    assert len(list((tmp_path / "cache" / "kernels").iterdir())) == 2


@pytest.mark.parametrize("word", ["off", "OFF", "0"])
def test_they_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("UNDERTOW_KERNELS", word)
    assert kernels() == (None, "switched off by UNDERTOW_KERNELS", "")


def test_without_a_compiler_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert _refused() == "no gcc is found"
    assert "apt install gcc" in kernels().remedy


def test_without_the_threads_of_torch_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/gcc")
    monkeypatch.setattr(module, "_threads", lambda: None)
    assert "libgomp" in _refused()


def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert kernels() == (None, "made for Linux on x86-64 only", "")


@needs_gcc
def test_a_compiler_that_fails_is_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "kernels.c"
    broken.write_text('#include "none.h"\n', encoding="utf-8")
    monkeypatch.setattr(module, "_SOURCE", broken)
    assert "gcc failed" in _refused()
    assert "none.h: No such file" in kernels().reason
    assert "apt install gcc" in kernels().remedy
    assert not list((tmp_path / "cache" / "kernels").iterdir())


@needs_gcc
def test_a_cache_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    monkeypatch.setenv("UNDERTOW_CACHE", str(blocked))
    assert str(blocked) in _refused()
    assert "UNDERTOW_CACHE" in kernels().remedy


@needs_gcc
def test_what_another_user_has_put_there_is_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kernels().library is not None
    kernels.cache_clear()
    monkeypatch.setattr(module, "_owner", lambda _: -1)
    assert "belongs to another user" in _refused()


@needs_gcc
def test_a_library_that_is_none_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "fake.so"
    fake.write_text("no library", encoding="utf-8")
    monkeypatch.setattr(module, "_built", lambda *_: fake)
    assert "fake.so" in _refused()
