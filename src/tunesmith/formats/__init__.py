"""Formats: one file is one shape of row. Recognised by themselves; `data.format` overrules."""
