"""Interventions: what turns a base into a teacher, or into a noised base."""
