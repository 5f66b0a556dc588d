"""Nouns that every other part of Tunesmith uses; nothing here imports torch or transformers."""
