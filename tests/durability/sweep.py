"""Kill a process at every call that changes the disk, let it be gone on with, and see what is left.

    python tests/durability/sweep.py checkpoints           # in Python: every open, mkdir, rename, link, remove, fsync
    python tests/durability/sweep.py training --every 3    # a whole small training, its checkpoints in a thread
    python tests/durability/sweep.py run --every 10        # the step `train`: recipe to published model and report
    python tests/durability/sweep.py checkpoints --strace  # the same with strace: every system call, writes included

After each kill the work is gone on with in a new process, which must begin at the last checkpoint that was said to be
saved or at a later one, need no cleaning, and end with the very bytes of a process that was never killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent.parent))

EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "fcntl.flock")
CALLS = ("openat", "mkdir", "write", "fsync", "rename", "link", "linkat", "unlink", "unlinkat", "rmdir", "flock")
KILLED = 137
Say = Callable[[int], None]
"""Called with the step of a checkpoint once it is saved."""


@dataclass(frozen=True)
class Scenario:
    """Work in a folder that can be gone on with; `work` gives back the step it began after."""

    work: Callable[[Path, Say], int]
    result: Callable[[Path], object]
    """What must be the same in the end, killed or not."""
    modules: tuple[str, ...]
    """What it imports."""


@dataclass
class Tally:
    """What a sweep found."""

    num_kills: int = 0
    num_lost: int = 0
    """Kills after which the work began before a checkpoint that was said to be saved."""
    num_different: int = 0
    num_failed: int = 0
    """Kills after which the work could not be gone on with."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing was lost."""
        return self.num_kills > 0 and not (self.num_lost or self.num_different or self.num_failed)


# --- scenarios --------------------------------------------------------------------------------------


def checkpoints(folder: Path, say: Say) -> int:
    """Six checkpoints of a small tensor and its optimiser, two kept, bests at 1, 3 and 6."""
    import torch

    from tunesmith.core.publish import remove_stale_drafts
    from tunesmith.training.checkpoint import Snapshot, load_checkpoint, remove_superseded, save_checkpoint

    folder.mkdir(exist_ok=True)
    remove_stale_drafts(folder)
    weights = {"w": torch.nn.Parameter(torch.ones(3, 2)), "b": torch.nn.Parameter(torch.zeros(2))}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)
    damaged: list[object] = []
    where = {"tensors": weights, "optimizer": optimizer, "identity": {"seed": 1}}
    state = load_checkpoint(folder, on_damage=damaged.append, **where)
    first = state.step
    remove_superseded(folder, first, 2)
    assert not damaged, damaged
    if first == 0:
        torch.manual_seed(0)
    while state.step < 6:
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape)
        optimizer.step()
        state.step += 1
        if state.step in (1, 3, 6):
            state.best_step, state.best_loss = state.step, 1 / state.step
        snapshot = Snapshot.take(state, weights, optimizer)
        save_checkpoint(folder, snapshot, identity={"seed": 1}, num_kept=2)
        say(state.step)
    return first


def training(folder: Path, say: Say) -> int:
    """A small training with dropout-free LoRA, three validations, its checkpoints written beside it."""
    from made_training import make_loop
    from tunesmith.core.events import Saved
    from tunesmith.core.run import RunFolder
    from tunesmith.methods.lora import LoRA

    folder.mkdir(exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    with RunFolder(folder).locked():
        loop = make_loop(folder, LoRA(rank=2), "llama", "sft", keep="best")

        def emit(event: object) -> None:
            if isinstance(event, Saved):
                say(int(Path(event.path).name.partition("-")[2]))

        loop.emit = emit  # type: ignore[assignment]
        first = loop.restore()
        loop.fit(lambda step: None)
        (folder / "weights.json").write_text(json.dumps(_tensors(loop.tensors)))
    return first


def run(folder: Path, say: Say) -> int:
    """`train` from the recipe to the report, or `resume`."""
    from tunesmith.core.events import Event, Saved, Started
    from tunesmith.core.run import RunFolder
    from tunesmith.recipe import make_recipe
    from tunesmith.steps.train import resume, train

    first = 0

    def emit(event: Event) -> None:
        nonlocal first
        if isinstance(event, Started):
            first = int(event.values.get("resumed_at") or 0)
        if isinstance(event, Saved) and event.what == "checkpoint":
            say(int(Path(event.path).name.partition("-")[2]))

    values = {
        "name": "small",
        "model": {"name": str(folder.parent / "base"), "precision": "fp32"},
        "data": {"source": str(folder.parent / "rows.jsonl")},
        "method": "full",
        "evaluate": ["perplexity"],
        "train": {"steps": 6, "tokens_per_step": 64, "validations": 3, "lr": 0.01, "patience": 0},
        "generate": {"max_new_tokens": 2},
    }
    existing = RunFolder(folder / "run")
    if existing.state == "finished":
        return 6
    if existing.recipe.is_file() and (existing.path / "data.json").is_file():
        resume(existing, emit=emit)
    else:
        train(make_recipe(values), emit=emit, root=folder, folder="run")
    return first


def _tensors(tensors: object) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()  # type: ignore[attr-defined]
    }


def _checkpoint_files(folder: Path) -> object:
    """Names and sums of all checkpoints; whole names, so that a draft left behind shows."""
    found = {}
    for path in sorted(folder.iterdir()):
        manifest = json.loads((path / "manifest.json").read_text())
        files = {name: one["sha256"] for name, one in manifest["files"].items() if name != "state.json"}
        found[path.name] = files
    return found


def _losses(path: Path) -> list[object]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [[one["step"], one.get("train_loss"), one.get("validation_loss")] for one in records]


def _training_result(folder: Path) -> object:
    names = sorted(path.name for path in folder.iterdir())
    parts = [_checkpoint_files(folder / "checkpoints"), _losses(folder / "metrics.jsonl"), names]
    return [*parts, json.loads((folder / "weights.json").read_text())]


def _run_result(folder: Path) -> object:
    from tunesmith.core.publish import content_hash, verify
    from tunesmith.core.run import RunFolder

    place = RunFolder(folder / "run")
    verify(place.model)
    names = sorted(path.name for path in place.path.iterdir())
    report = place.read_json("report.json")
    steps = [line for line in (place.path / "samples.md").read_text().splitlines() if line.startswith("## ")]
    parts = [_checkpoint_files(place.checkpoints), _losses(place.metrics), names, steps, place.state]
    return [*parts, content_hash(place.model), report["after"]["scores"]]


SCENARIOS = {
    "checkpoints": Scenario(checkpoints, _checkpoint_files, ("transformers", "tunesmith.training.checkpoint")),
    "training": Scenario(training, _training_result, ("made_training", "peft")),
    "run": Scenario(run, _run_result, ("tunesmith.steps.train", "matplotlib.figure", "peft")),
}

# --- killing ----------------------------------------------------------------------------------------


def sweep(
    name: str,
    place: Path,
    kills: Iterator[Callable[[Path], int]],
    *,
    first: int = 0,
    every: int = 1,
    most: int = 0,
) -> Tally:
    """Kill at each of `kills` in turn (every so many of them, from one on), go on, compare."""
    scenario = SCENARIOS[name]
    prepare(place, scenario.modules)
    code, _ = in_child(scenario, place / "whole")
    assert code == 0, "the work ends well when nobody kills it"
    wanted = scenario.result(place / "whole")
    tally = Tally()
    for number, kill in enumerate(kills):
        if number < first or number % every:
            continue
        folder = place / f"kill-{number}"
        if kill(folder) == 0:
            shutil.rmtree(folder)
            break
        tally.num_kills += 1
        saved = _saved(folder)
        code, began = in_child(scenario, folder)
        if code != 0:
            tally.num_failed += 1
            print(f"  kill {number}: could not be gone on with (exit code {code})", flush=True)
            continue
        if began < saved:
            tally.num_lost += 1
            print(f"  kill {number}: began after {began}, and {saved} was said to be saved", flush=True)
        if scenario.result(folder) != wanted:
            tally.num_different += 1
            print(f"  kill {number}: ended differently", flush=True)
        shutil.rmtree(folder)
        if most and tally.num_kills >= most:
            break
    return tally


def prepare(place: Path, modules: tuple[str, ...] = ()) -> None:
    """The base and the rows that scenarios share; what all children use is imported once, before they are made."""
    import torch

    from tunesmith.models.tiny import write_tiny

    for module in modules:
        import_module(module)
    torch.set_num_threads(1)
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "base").is_dir():
        write_tiny(place / "base", "llama", "causal", seed=1)
    rows = [{"question": f"What is {n}?", "answer": f"It is {n % 3}."} for n in range(12)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def _saved(folder: Path) -> int:
    lines = _log(folder).read_text().split() if _log(folder).is_file() else []
    return max(map(int, lines), default=0)


def in_child(scenario: Scenario, folder: Path, before: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Do the work in a process of its own: exit code (-9 where killed), and the step it began after."""
    began = folder.with_name(f"{folder.name}.began")
    log = os.open(_log(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before()
            first = scenario.work(folder, lambda step: os.write(log, f"{step}\n".encode()) and None)
            began.write_text(str(first))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(log)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(began.read_text()) if began.is_file() else 0


def python_kills(scenario: Scenario) -> Iterator[Callable[[Path], int]]:
    """Kills at the first, second, third … call that Python makes on the disk, by its audit events."""
    number = 0
    while True:
        number += 1

        def kill(folder: Path, fatal: int = number) -> int:
            return in_child(scenario, folder, lambda: _kill_at(fatal))[0]

        yield kill


def _kill_at(fatal: int) -> None:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            os._exit(KILLED)

    def hook(event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in EVENTS or writes:
            count()

    honest = os.fsync

    def fsync(descriptor: int) -> None:
        count()
        honest(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def strace_kills(scenario: Scenario, call: str) -> Iterator[Callable[[Path], int]]:
    """Kills by strace at the first, second, third … system call of one kind, threads included."""
    number = 0
    while True:
        number += 1

        def kill(folder: Path, fatal: int = number) -> int:
            return _in_traced_child(scenario, folder, f"inject={call}:signal=SIGKILL:when={fatal}", call)

        yield kill


def _in_traced_child(scenario: Scenario, folder: Path, inject: str, call: str) -> int:
    read, write = os.pipe()
    tracer: list[subprocess.Popen[str]] = []
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until strace is there
        code, _ = 1, None
        try:
            log = os.open(_log(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            scenario.work(folder, lambda step: os.write(log, f"{step}\n".encode()) and None)
            code = 0
        finally:
            os._exit(code)
    os.close(read)
    words = ["strace", "-f", "-p", str(child), "-e", f"trace={call}", "-e", inject, "-o", "/dev/null"]
    tracer.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
    assert tracer[0].stderr is not None
    line = tracer[0].stderr.readline()
    assert "attached" in line, line
    os.write(write, b"g")
    os.close(write)
    _, status = os.waitpid(child, 0)
    tracer[0].wait(timeout=60)
    tracer[0].stderr.close()
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return code


def main() -> int:
    """Run a sweep and say what it found; exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--strace", action="store_true")
    parser.add_argument("--first", type=int, default=0, help="begin with this kill: a sweep was broken off there")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--most", type=int, default=0, help="at most so many kills (of each kind)")
    words = parser.parse_args()
    scenario = SCENARIOS[words.scenario]
    is_sound = True
    with tempfile.TemporaryDirectory() as root:
        kinds = CALLS if words.strace else ("python",)
        for kind in kinds:
            kills = strace_kills(scenario, kind) if words.strace else python_kills(scenario)
            place, chosen = Path(root) / kind, {"first": words.first, "every": words.every, "most": words.most}
            tally = sweep(words.scenario, place, kills, **chosen)
            if tally.num_kills:
                lost = f"{tally.num_lost} lost a checkpoint, {tally.num_different} ended differently"
                print(
                    f"{words.scenario}, {kind}: {tally.num_kills} kills: {lost}, {tally.num_failed} failed", flush=True
                )
                is_sound &= tally.is_sound
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
