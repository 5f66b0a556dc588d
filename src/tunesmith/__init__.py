"""Tunesmith: fine-tune language models on your own data, from the raw file to the served answer."""

__version__ = "0.1.0"
