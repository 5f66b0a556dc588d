"""Targets: where a model is exported to."""
