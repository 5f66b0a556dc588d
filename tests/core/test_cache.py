"""A cache of things that can be made again: what a killed process left half-made goes, what is being made stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tunesmith.core.cache import Cache

ENDLESS = """
import sys, time
from pathlib import Path
from tunesmith.core.cache import Cache

def build(draft):
    (draft / "half").write_text("half")
    print("begun", flush=True)
    time.sleep(60)

Cache(Path(sys.argv[1]), 2**20).open(sys.argv[2], build)
"""


def _begun(folder: Path, key: str) -> subprocess.Popen[str]:
    """A process that makes an entry and never ends."""
    maker = subprocess.Popen([sys.executable, "-c", ENDLESS, str(folder), key], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "begun\n"
    return maker


def _write(draft: Path) -> None:
    (draft / "text").write_text("whole")


def test_what_a_killed_process_left_half_made_goes_at_once_and_what_is_being_made_stays(tmp_path: Path) -> None:
    killed, alive = _begun(tmp_path, "killed"), _begun(tmp_path, "alive")
    try:
        killed.kill()
        killed.wait()
        drafts = sorted(path.name.partition(".tmp-")[0] for path in tmp_path.iterdir())
        assert drafts == [".alive", ".killed"]
        entry = Cache(tmp_path, 2**20).open("other", _write)
        left = sorted(path.name.partition(".tmp-")[0] for path in tmp_path.iterdir())
        assert left == [".alive", "other"]
        alive.kill()
        alive.wait()
        assert Cache(tmp_path, 2**20).open("other", _write) == entry  # found, not made: the other draft goes as well
        assert [path.name for path in tmp_path.iterdir()] == ["other"]
    finally:
        for maker in (killed, alive):
            maker.kill()
            maker.wait()
