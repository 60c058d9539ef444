"""Diagnostics by which papers decide whether training taught a model a skill, or switched one on."""
