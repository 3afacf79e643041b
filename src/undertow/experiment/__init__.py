"""Experiments: a recipe, its stages in order, and what they mean together."""

from undertow.experiment.recipe import Recipe
from undertow.experiment.running import run_experiment

__all__ = ["Recipe", "run_experiment"]
