"""Raw files to examples: rows with file and line, checks, splits, templates, packing. No torch here."""
