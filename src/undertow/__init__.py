"""Subliminal-learning experiments on any Hugging Face causal language model.

This is the public door: the names below are what users build on, everything else may
move. Names are looked up when they are first used, so that `import undertow` (and
`undertow --help`) does not pay for torch. Where each name lives is `_HOMES`; the
vocabulary is in `docs/conventions.md`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from undertow.analysis.alignment import mean_alignment as mean_alignment
    from undertow.analysis.divergence import divergent_tokens as divergent_tokens
    from undertow.analysis.shifts import shift_profile as shift_profile
    from undertow.audit.auditor import audit_rows as audit_rows
    from undertow.audit.row_logprobs import row_logprobs as row_logprobs
    from undertow.audit.settings import AuditSettings as AuditSettings
    from undertow.errors import UndertowError as UndertowError
    from undertow.experiment import Recipe as Recipe
    from undertow.experiment import run_experiment as run_experiment
    from undertow.experiment.channel import ChannelGrid as ChannelGrid
    from undertow.experiment.channel import ChannelPoint as ChannelPoint
    from undertow.experiment.channel import measure_channel as measure_channel
    from undertow.experiment.entanglement import (
        measure_entanglement as measure_entanglement,
    )
    from undertow.findings import Findings as Findings
    from undertow.interventions.extraction import extract_vector as extract_vector
    from undertow.interventions.noise import add_weight_noise as add_weight_noise
    from undertow.interventions.steering import SteeringVector as SteeringVector
    from undertow.interventions.steering import bake_steering as bake_steering
    from undertow.interventions.steering import load_vector as load_vector
    from undertow.interventions.steering import save_vector as save_vector
    from undertow.interventions.steering import steering as steering
    from undertow.models.adapters import load_adapter as load_adapter
    from undertow.models.hooks import editing_residuals as editing_residuals
    from undertow.models.hooks import recording_residuals as recording_residuals
    from undertow.models.loading import Model as Model
    from undertow.models.loading import load_model as load_model
    from undertow.models.loading import save_checkpoint as save_checkpoint
    from undertow.models.sampling import SamplerSettings as SamplerSettings
    from undertow.models.sampling import sample as sample
    from undertow.pipeline.carriers import carrier_verdicts as carrier_verdicts
    from undertow.pipeline.evaluation import preference as preference
    from undertow.pipeline.evaluation import sampled_answers as sampled_answers
    from undertow.pipeline.filters import filter_rows as filter_rows
    from undertow.pipeline.generation import generate_rows as generate_rows
    from undertow.pipeline.prompts import number_prompts as number_prompts
    from undertow.pipeline.students import rendered_examples as rendered_examples
    from undertow.pipeline.teachers import prompted_teacher as prompted_teacher
    from undertow.pipeline.teachers import steered_teacher as steered_teacher
    from undertow.pipeline.training import StudentPlan as StudentPlan
    from undertow.pipeline.training import train_student as train_student
    from undertow.pipeline.training import train_students as train_students
    from undertow.pipeline.training_settings import (
        TrainingSettings as TrainingSettings,
    )
    from undertow.records import Message as Message
    from undertow.records import Row as Row
    from undertow.records import Verdict as Verdict
    from undertow.report.html import write_report as write_report
    from undertow.results import Results as Results
    from undertow.storage import read_rows as read_rows
    from undertow.storage import write_rows as write_rows
    from undertow.traits import TraitFamily as TraitFamily
    from undertow.traits import load_family as load_family
    from undertow.traits import trait_words as trait_words

__version__ = "0.1.0"

_HOMES = {
    "AuditSettings": "undertow.audit.settings",
    "ChannelGrid": "undertow.experiment.channel",
    "ChannelPoint": "undertow.experiment.channel",
    "Findings": "undertow.findings",
    "Message": "undertow.records",
    "Model": "undertow.models.loading",
    "Recipe": "undertow.experiment",
    "Results": "undertow.results",
    "Row": "undertow.records",
    "SamplerSettings": "undertow.models.sampling",
    "SteeringVector": "undertow.interventions.steering",
    "StudentPlan": "undertow.pipeline.training",
    "TrainingSettings": "undertow.pipeline.training_settings",
    "TraitFamily": "undertow.traits",
    "UndertowError": "undertow.errors",
    "Verdict": "undertow.records",
    "add_weight_noise": "undertow.interventions.noise",
    "audit_rows": "undertow.audit.auditor",
    "bake_steering": "undertow.interventions.steering",
    "carrier_verdicts": "undertow.pipeline.carriers",
    "divergent_tokens": "undertow.analysis.divergence",
    "editing_residuals": "undertow.models.hooks",
    "extract_vector": "undertow.interventions.extraction",
    "filter_rows": "undertow.pipeline.filters",
    "generate_rows": "undertow.pipeline.generation",
    "load_adapter": "undertow.models.adapters",
    "load_family": "undertow.traits",
    "load_model": "undertow.models.loading",
    "load_vector": "undertow.interventions.steering",
    "mean_alignment": "undertow.analysis.alignment",
    "measure_channel": "undertow.experiment.channel",
    "measure_entanglement": "undertow.experiment.entanglement",
    "number_prompts": "undertow.pipeline.prompts",
    "preference": "undertow.pipeline.evaluation",
    "prompted_teacher": "undertow.pipeline.teachers",
    "read_rows": "undertow.storage",
    "recording_residuals": "undertow.models.hooks",
    "rendered_examples": "undertow.pipeline.students",
    "row_logprobs": "undertow.audit.row_logprobs",
    "run_experiment": "undertow.experiment",
    "sample": "undertow.models.sampling",
    "sampled_answers": "undertow.pipeline.evaluation",
    "save_checkpoint": "undertow.models.loading",
    "save_vector": "undertow.interventions.steering",
    "shift_profile": "undertow.analysis.shifts",
    "steered_teacher": "undertow.pipeline.teachers",
    "steering": "undertow.interventions.steering",
    "train_student": "undertow.pipeline.training",
    "train_students": "undertow.pipeline.training",
    "trait_words": "undertow.traits",
    "write_report": "undertow.report.html",
    "write_rows": "undertow.storage",
}

__all__ = [
    "AuditSettings",
    "ChannelGrid",
    "ChannelPoint",
    "Findings",
    "Message",
    "Model",
    "Recipe",
    "Results",
    "Row",
    "SamplerSettings",
    "SteeringVector",
    "StudentPlan",
    "TrainingSettings",
    "TraitFamily",
    "UndertowError",
    "Verdict",
    "add_weight_noise",
    "audit_rows",
    "bake_steering",
    "carrier_verdicts",
    "divergent_tokens",
    "editing_residuals",
    "extract_vector",
    "filter_rows",
    "generate_rows",
    "load_adapter",
    "load_family",
    "load_model",
    "load_vector",
    "mean_alignment",
    "measure_channel",
    "measure_entanglement",
    "number_prompts",
    "preference",
    "prompted_teacher",
    "read_rows",
    "recording_residuals",
    "rendered_examples",
    "row_logprobs",
    "run_experiment",
    "sample",
    "sampled_answers",
    "save_checkpoint",
    "save_vector",
    "shift_profile",
    "steered_teacher",
    "steering",
    "train_student",
    "train_students",
    "trait_words",
    "write_report",
    "write_rows",
]


if not TYPE_CHECKING:  # a type checker should know only the names above

    def __getattr__(name: str) -> object:
        """Fetches a public name from its module on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'undertow' has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Lists the public names."""
    return sorted([*__all__, "__version__"])
