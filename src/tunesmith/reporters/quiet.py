"""Only warnings and faults in the data: for `--quiet`, and for every rank but the first."""

from __future__ import annotations

from tunesmith.core.events import Event, Finding, Warning
from tunesmith.reporters.base import Reporter
from tunesmith.reporters.text import Output, paint


class Quiet(Reporter):
    """Writes a line for each warning."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def draw(self, event: Event) -> None:
        if isinstance(event, Warning):
            self._output.write(paint("!", "yellow") + f" {event.message}")
        elif isinstance(event, Finding):
            self._output.write(finding_line(event))


def finding_line(event: Finding) -> str:
    """One finding: mark, place, code, what, how many rows, what to do."""
    mark = paint("✗", "red") if event.level == "error" else paint("!", "yellow")
    many = f" ({event.num_rows:,} rows)" if event.num_rows > 1 else ""
    remedy = f"   {event.remedy}" if event.remedy else ""
    return f"{mark} {paint(event.where, 'cyan')}  {event.code}  {event.message}{many}{remedy}"
