"""Artefacts drawn from results: HTML pages and plots. Reporters draw events, reports draw what stays."""
