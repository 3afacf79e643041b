"""Stages: prompts, teachers, generation, filters, training, evaluation."""
