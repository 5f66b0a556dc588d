"""Metrics: how answers are scored, with intervals."""
