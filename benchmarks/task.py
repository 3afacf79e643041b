"""What both sides get: token prompts to answer, rows to train on or audit, as JSON.

Imported in undertow's environment only; the sides read the file.
"""

import json
from pathlib import Path
from typing import Any

from undertow.models.chat import render_prompt, render_row
from undertow.models.loading import load_model
from undertow.models.registry import model_directory
from undertow.models.sampling import SamplerSettings
from undertow.pipeline.generation import generate_rows
from undertow.pipeline.prompts import number_prompts
from undertow.pipeline.teachers import Teacher
from undertow.records import Message


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
    model = load_model(model_name, template=template)
    texts = number_prompts(max(prompts, rows), seed=0)
    sampler = SamplerSettings(allowed="list", max_new_tokens=60)
    teacher, half = Teacher(kind="none"), rows // 2
    written = generate_rows(model, teacher, texts[:rows], seed=0, sampler=sampler)
    reference = generate_rows(model, teacher, texts[:half], seed=1, sampler=sampler)
    task = {
        "model": model_name,
        "folder": str(model_directory(model_name)),
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
