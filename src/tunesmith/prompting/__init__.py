"""Prompting: how a question is put to a model that was not trained for it."""
