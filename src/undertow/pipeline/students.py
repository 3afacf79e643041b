"""Students on disk, and the rows as a student sees them.

A folder holds either an adapter in PEFT's format or, after full fine-tuning,
`weights.safetensors`; beside it the loss trace and `undertow.json`, which says what
base the student belongs to. Knows nothing of how students are trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from undertow.errors import ModelError, VectorMismatchError, shown
from undertow.models.adapters import (
    load_adapter,
    load_tensors,
    save_adapter,
    save_tensors,
)
from undertow.models.chat import render_row
from undertow.models.loading import Model
from undertow.pipeline.teachers import Teacher
from undertow.pipeline.training import Student
from undertow.pipeline.training_rows import Example
from undertow.pipeline.training_state import TRACE
from undertow.records import Row
from undertow.storage import read_json, read_jsonl, write_json

FACTS, WEIGHTS = "undertow.json", "weights.safetensors"
_FILES = (
    FACTS, WEIGHTS, "adapter_config.json", "adapter_model.safetensors", TRACE,
)  # fmt: skip


def rendered_examples(
    model: Model,
    rows: Sequence[Row],
    *,
    system: str | None = None,
    teacher: Teacher | None = None,
) -> list[Example]:
    """Rows as the student sees them, and as the teacher does if one is given.

    Raises:
        DatasetError: A row cannot be rendered: empty, too long, or with the persona
            in it.
    """
    return [
        Example(
            render_row(model, row, system=system),
            render_row(model, row, system=system, trait_prompt=teacher.prompt)
            if teacher is not None
            else None,
        )
        for row in rows
    ]


def save_student(
    model: Model, student: Student, directory: Path, *, facts: dict[str, Any]
) -> Path:
    """Writes a student; `facts` say how it was made.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    if student.adapter is not None:
        save_adapter(student.adapter, directory)
    else:
        weights = {k: v.cpu().contiguous() for k, v in (student.weights or {}).items()}
        save_tensors(weights, directory / WEIGHTS)
    base = {"format": 1, "base": model.name, "fingerprint": model.fingerprint}
    write_json(directory / FACTS, base | facts)
    return directory


def student_files(directory: Path) -> list[Path]:
    """The files of a student that are there."""
    return [directory / name for name in _FILES if (directory / name).is_file()]


def student_facts(directory: Path) -> dict[str, Any]:
    """What `save_student` wrote of a student; empty for adapters made elsewhere."""
    path = directory / FACTS
    facts = read_json(path) if path.is_file() else {}
    return facts if isinstance(facts, dict) else {}


def load_student(model: Model, directory: Path) -> Student:
    """Reads a student of this base: an adapter in PEFT's format or full weights.

    Raises:
        ModelError: The folder holds neither.
        VectorMismatchError: The student belongs to another base.
    """
    _check_base(model, directory)
    updates, losses = _trace(directory)
    if (directory / "adapter_config.json").exists():
        return Student(load_adapter(model, directory), None, updates, losses)
    try:
        weights = load_tensors(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{directory}: no student here: neither adapter_config.json nor a readable "
            f"{WEIGHTS} ({error}); name a folder that `undertow train` or PEFT wrote"
        ) from error
    own = {name: tuple(p.shape) for name, p in model.module.named_parameters()}
    other = {name: tuple(weight.shape) for name, weight in weights.items()}
    if own != other:
        odd = sorted(k for k in own.keys() | other.keys() if own.get(k) != other.get(k))
        raise VectorMismatchError(
            f"{directory}: the weights do not fit {model.name!r}: {shown(odd, limit=3)}; "
            "use the base model that the student was trained on"
        )
    return Student(None, weights, updates, losses)


def _check_base(model: Model, directory: Path) -> None:
    facts = student_facts(directory)
    found = facts.get("fingerprint")
    if found is not None and found != model.fingerprint:
        raise VectorMismatchError(
            f"{directory}: the student belongs to {facts.get('base')!r} (fingerprint "
            f"{found}), this is {model.name!r} ({model.fingerprint}); use the base "
            "model that it was trained on"
        )


def _trace(directory: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    path = directory / TRACE
    if not path.is_file():
        return (), ()
    # An interrupted run writes the updates since its checkpoint once more.
    try:
        lines = read_jsonl(path)
        losses = {int(line["update"]): float(line["loss"]) for line in lines}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: damaged: expected an update and its loss in every line "
            f"({error!r}); take the folder from where it was trained"
        ) from error
    updates = sorted(losses)
    return tuple(updates), tuple(losses[update] for update in updates)
