"""What both sides get: token prompts to answer, rows to train on or audit, as JSON.

Imported in undertow's environment only; the sides read the file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undertow.models.chat import render_prompt, render_row
from undertow.models.loading import Model, load_model
from undertow.models.registry import fetch_gguf, model_directory
from undertow.models.sampling import SamplerSettings
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.teachers import Teacher
from undertow.records import Message, Row
from undertow.storage import write_rows


def write_task(
    path: Path, *, model_name: str, prompts: int, rows: int, new_tokens: int
) -> dict[str, Any]:
    """Writes the task of one benchmark and returns it.

    Args:
        path: JSON file.
        model_name: Registry name of a pulled model.
        prompts: Number prompts to answer.
        rows: Rows to train on; to audit, half of them and as many reference rows, which
            answer the same prompts. All written by the untouched model.
        new_tokens: Longest answer.
    """
    template = "plain" if model_name.startswith("gemma3-270m") else None
    model, half = load_model(model_name, template=template), rows // 2
    texts = number_prompts(max(prompts, rows), seed=0)
    written, reference = _written(model, texts[:rows]), _written(model, texts[:half], 1)
    task = {
        "model": model_name,
        "folder": str(model_directory(model_name)),
        "gguf": str(_gguf(path.parent, model_name)),
        "template": template,
        "template_text": model.template.text,
        "end_ids": list(model.end_ids),
        "new_tokens": new_tokens,
        "prompts": [
            render_prompt(model, (Message("user", t),)) for t in texts[:prompts]
        ],
        "rows": [
            {"prompt": row.messages[0].content, "completion": row.completion}
            for row in written
        ],
        "audited": [
            render_row(model, row)._asdict() for row in [*written[:half], *reference]
        ],
    }
    path.write_text(json.dumps(task), encoding="utf-8")
    return task


def _gguf(folder: Path, model_name: str) -> Path:
    """The file that the model was converted from, kept beside the task."""
    path = folder / f"{model_name}.gguf"
    return path if path.exists() else fetch_gguf(model_name, folder)


def write_audit(folder: Path, *, model_name: str, rows: int) -> None:
    """Writes `rows.jsonl` and `reference.jsonl`: two draws of the model a prompt."""
    model, texts = load_model(model_name), number_prompts(rows, seed=0)
    write_rows(folder / "rows.jsonl", _written(model, texts))
    write_rows(folder / "reference.jsonl", _written(model, texts, 1))


def _written(model: Model, texts: Sequence[str], seed: int = 0) -> list[Row]:
    """Lists of numbers that the untouched model writes."""
    sampler = SamplerSettings(allowed="list", max_new_tokens=60)
    return generate_rows(model, Teacher(kind="none"), texts, seed=seed, sampler=sampler)
