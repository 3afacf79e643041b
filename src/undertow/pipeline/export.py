"""Writes a teacher as a plain checkpoint that any engine can sample.

Fine-tuned teachers are merged, steered ones baked as a bias; a prompted teacher has
no weights of its own. Knows nothing of rows.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from undertow.errors import ModelError
from undertow.interventions.steering import bake_steering
from undertow.models.adapters import merge_adapter
from undertow.models.loading import Model, fingerprint, save_checkpoint
from undertow.pipeline.teachers import Teacher


def export_teacher(
    model: Model, teacher: Teacher, directory: Path, *, provenance: dict[str, Any]
) -> Path:
    """Writes the teacher's weights, tokenizer and provenance.

    The model in memory becomes the teacher for good; load the base anew after it.

    Args:
        model: The base.
        teacher: Any but a prompted one.
        directory: A folder that does not exist yet.
        provenance: Further facts for `undertow.json`.

    Raises:
        ModelError: A prompted teacher, or a steered one whose architecture has no
            place for a bias, or the folder exists.
    """
    if teacher.kind == "prompt":
        raise ModelError(
            "a prompted teacher is its base with a persona in the system turn; there "
            "are no weights to export. Sample the base with this system text: "
            f"{teacher.prompt!r}"
        )
    if (teacher.mode, teacher.positions) != ("add", "all"):
        raise ModelError(
            f"a bias acts everywhere by adding; this teacher's mode is {teacher.mode!r} "
            f"and its positions are {teacher.positions!r}. Keep the vector's file and "
            "apply it with undertow.steering"
        )
    if directory.exists():
        raise ModelError(f"{directory}: exists already; choose a new folder")
    if teacher.vector is not None:
        model = bake_steering(model, teacher.vector, strength=teacher.strength)
    elif teacher.student is not None:
        _merge(model, teacher)
        model = replace(
            model,
            name=f"{model.name}+finetuned",
            fingerprint=fingerprint(model.module),
        )
    facts = {**teacher.describe(), **provenance}
    return save_checkpoint(model, directory, provenance=facts)


@torch.no_grad()
def _merge(model: Model, teacher: Teacher) -> None:
    student = teacher.student
    assert student is not None
    if student.adapter is not None:
        merge_adapter(model, student.adapter)
        return
    named = dict(model.module.named_parameters())
    for name, weight in (student.weights or {}).items():
        named[name].copy_(weight.to(named[name]))
