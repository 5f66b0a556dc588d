"""What the Python API gives back: small frozen records around a folder, with a true one-line `repr`.

Closing the notebook loses nothing: `ts.run(path)`, `ts.models[name]` open what is on disk again.
"""

from tunesmith.nouns.data import Data, Rows
from tunesmith.nouns.model import Model, Version
from tunesmith.nouns.plan import Plan
from tunesmith.nouns.report import Report
from tunesmith.nouns.run import Run
from tunesmith.nouns.search import Search
from tunesmith.nouns.seeds import Seeds
from tunesmith.nouns.server import Server

__all__ = ["Data", "Model", "Plan", "Report", "Rows", "Run", "Search", "Seeds", "Server", "Version"]
