"""The verbs, one file each; the same behind the terminal, Python and HTTP."""
