"""Scores and tables, as the nouns show them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.quantities import interval

if TYPE_CHECKING:
    import pandas as pd


def score_interval(score: Mapping[str, Any] | None) -> str:
    """`0.78 [0.69, 0.86]`, or a dash where there is no score."""
    return interval(score["value"], score["low"], score["high"]) if score else "–"


def frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The records as a DataFrame of JSON values.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UserError("tables need pandas.", code="missing_package", remedy="pip install pandas") from None
    return pd.DataFrame.from_records(json.loads(json.dumps(list(records), default=str)))
