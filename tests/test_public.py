"""The public door: every name is there, and opening it costs nothing."""

import os
import resource
import subprocess
import sys

import pytest

import undertow


def fresh_python(code: str) -> str:
    """Runs code in a new interpreter and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", undertow.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(undertow, name)
    assert value.__module__.startswith("undertow.")
    assert value.__doc__, f"{name} has no docstring"


def test_the_list_of_names_is_the_table_of_homes() -> None:
    assert undertow.__all__ == sorted(undertow._HOMES)
    assert set(undertow.__all__) <= set(dir(undertow))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'undertoad'"):
        _ = undertow.undertoad  # type: ignore[attr-defined]


def test_importing_undertow_imports_nothing_heavy() -> None:
    heavy = "torch transformers numpy scipy pyarrow peft accelerate"
    code = (
        f"import sys, undertow; print([m for m in {heavy.split()} if m in sys.modules])"
    )
    assert fresh_python(code) == "[]"


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from undertow.cli import main\n"
        "sys.argv = ['undertow', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert fresh_python(code).splitlines()[-1] == "False False"


def test_help_takes_under_half_a_second_of_processor_time() -> None:
    # Processor time, not wall time: other tests run beside this one. The best of
    # three: the first may still compile bytecode.
    seconds = []
    command = [sys.executable, "-c", "from undertow.cli import main; main()", "--help"]
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            command, check=True, capture_output=True, env=os.environ | {"COLUMNS": "88"}
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(
            after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        )
    assert min(seconds) < 0.5, seconds
