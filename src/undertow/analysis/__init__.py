"""Measurements: what a student's change looks like inside. Knows no stages."""
