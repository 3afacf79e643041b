"""Runs the notebooks from top to bottom and stores what they show.

Run: python notebooks/execute.py [NAME ...]

Which model they take is UNDERTOW_NOTEBOOK_MODEL's to say; what is kept in the
repository comes from `smollm2-135m`. Times and paths of the machine are not stored.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def executed(path: Path, *, timeout: int | None = None) -> Any:
    """The notebook with the outputs of a fresh run; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,
        timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def main() -> None:
    """Executes and stores the notebooks that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="without .ipynb; all if none")
    names = parser.parse_args().names
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Other libraries' progress bars want widgets, and warn of it with a path.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    paths = [HERE / f"{name}.ipynb" for name in names]
    for path in paths or sorted(HERE.glob("*.ipynb")):
        nbformat.write(executed(path), path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
