"""Plans against what then happens: peak memory and time of ten small trainings, each in a process of its own.

    python benchmarks/plan_accuracy.py            # all, some minutes on a quiet machine
    python benchmarks/plan_accuracy.py bert_full  # some of them

Models have random weights of 20 to 50 M parameters; rows are 30 to 400 tokens long. Writes
`benchmarks/results/plan_accuracy.json` and `.md`, and two lines of latest.json whose ratio is the share of trainings
within 15 %; with names given it only prints. Memory is the process's resident peak, time that of the training steps.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, keep, machine, run_child

DECODER = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 16000}
WIDE = {**DECODER, "intermediate_size": 1408, "num_key_value_heads": 4, "max_position_embeddings": 2048}
ENCODER = {**DECODER, "intermediate_size": 2048, "max_position_embeddings": 514, "vocab_size": 30000}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama_lora": ({"model_type": "llama", **WIDE}, {"method": {"name": "lora", "rank": 16}}),
    "llama_full": ({"model_type": "llama", **WIDE}, {"method": "full"}),
    "mistral_recompute": ({"model_type": "mistral", **WIDE}, {"method": "lora", "train": {"recompute": "all"}}),
    "qwen_prompt": ({"model_type": "qwen2", **WIDE}, {"method": "prompt_tuning"}),
    "gemma_last_k": ({"model_type": "gemma", **WIDE, "head_dim": 64}, {"method": {"name": "last_k", "k": 3}}),
    "gpt2_8bit": (
        {"model_type": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 16000},
        {"method": "full", "train": {"optimizer": "adamw_8bit"}},
    ),
    "gpt2_padded": (
        {"model_type": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 16000},
        {"method": "bottleneck", "train": {"packing": "off"}},
    ),
    "bert_full": ({"model_type": "bert", **ENCODER}, {"method": "full"}),
    "distilbert_lora": (
        {"model_type": "distilbert", "dim": 512, "hidden_dim": 2048, "n_layers": 6, "n_heads": 8, "vocab_size": 30000},
        {"method": "lora"},
    ),
    "t5_full": (
        {"model_type": "t5", "d_model": 512, "d_ff": 1024, "num_layers": 6, "num_heads": 8, "vocab_size": 32128},
        {"method": "full"},
    ),
}
"""Configuration of the model, and what the recipe changes."""
WITHIN = 0.15
ENCODERS, PAIRS = ("bert", "distilbert"), ("t5",)


def main() -> None:
    """Run the cases that are named, or all."""
    names = sys.argv[1:] or list(CASES)
    found = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found.append({"name": name, **compare(name, Path(folder))})
        print(line(found[-1]), flush=True)
    if not sys.argv[1:]:
        threads = int(os.environ.get("OMP_NUM_THREADS", "") or os.cpu_count() or 1)
        lines = [share_line("memory", 0, found), share_line("time", 1, found)]
        keep(
            RESULTS,
            "plan_accuracy",
            comparisons=lines,
            raw={"machine": machine(threads), "cases": found},
            page=page(found),
        )


def share_line(name: str, place: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The line of latest.json: the share of trainings whose plan was within 15 %."""
    off = [abs(ratios(case)[place] - 1) for case in found]
    share = sum(one <= WITHIN for one in off) / len(off)
    return {
        "benchmark": f"plan_accuracy/{name}",
        "ours": round(share, 3),
        "peer": 1.0,
        "peer_version": "what then happened",
        "ratio": round(share, 3),
        "settings": f"share of {len(off)} trainings within 15 %; the furthest is {100 * max(off):.0f} % off",
    }


def compare(name: str, folder: Path) -> dict[str, float]:
    """The plan of a case, and what a training of it took."""
    recipe = write_case(name, folder)
    command = [sys.executable, "-m", "tunesmith"]
    plan = json.loads(run_child([*command, "plan", str(recipe), "--json"], folder=folder))
    measured = run_child(
        [sys.executable, __file__, "--measure", *command[1:], "train", str(recipe), "--json"], folder=folder
    )
    peak, run = json.loads(measured.splitlines()[-1])
    report = json.loads((folder / run / "report.json").read_text())["training"]
    return {
        "planned_bytes": plan["memory"]["resident_peak"],
        "measured_bytes": peak,
        "planned_seconds": plan["time"]["training"],
        "measured_seconds": report["seconds"],
    }


def measure(words: list[str]) -> None:
    """Run a command; print its peak resident memory in bytes and the run's folder.

    In a small process, as the system counts a parent's memory with its child's; `run_child` of the large one ends both.
    """
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps([peak, json.loads(done.stdout)["run"]]))


def write_case(name: str, folder: Path) -> Path:
    """A model with random weights, rows and a recipe."""
    import torch
    import transformers

    from tunesmith.models.load import load_tokenizer
    from tunesmith.recipe import ModelSettings

    values, changes = CASES[name]
    kind = values["model_type"]
    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    settings = {key: value for key, value in values.items() if key != "model_type"}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    start = {"decoder_start_token_id": tokenizer.pad_token_id} if kind in PAIRS else {}
    config = transformers.AutoConfig.for_model(kind, **settings, **special, **start)
    if kind in ENCODERS:
        model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    else:
        auto = transformers.AutoModelForSeq2SeqLM if kind in PAIRS else transformers.AutoModelForCausalLM
        model = auto.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [row_of(kind, number) for number in range(160)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    train = {"steps": 4, "tokens_per_step": 4096, "micro_tokens": 2048, "validations": 1, **changes.get("train", {})}
    recipe = {
        "model": str(folder / "model"),
        "data": {"source": str(folder / "rows.jsonl")},
        "method": changes["method"],
        "train": train,
        "evaluate": "accuracy" if kind in ENCODERS else "perplexity",
    }
    (folder / "case.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return folder / "case.yaml"


def row_of(kind: str, number: int) -> dict[str, Any]:
    """A row of 30 to 400 tokens, as lengths of chats are spread."""
    words = "the light of the machine is green when the water tank is full and the filter is clean ".split()  # noqa: SIM905
    length = 20 + (number * number * 37) % 220
    text = " ".join(words[(number + place) % len(words)] for place in range(length))
    answer = " ".join(text.split()[: max(4, length // 3)])
    if kind in ENCODERS:
        return {"text": text, "label": ("yes", "no", "maybe")[number % 3]}
    if kind in PAIRS:
        return {"source": text, "target": answer}
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


def line(case: dict[str, Any]) -> str:
    """`llama_lora: memory 1.02, time 0.97` (planned over measured), with what was measured."""
    memory, seconds = ratios(case)
    sizes = f"{case['measured_bytes'] / 2**30:.2f} GiB, {case['measured_seconds']:.1f} s"
    return f"{case['name']}: memory {memory:.2f}, time {seconds:.2f} of what was measured ({sizes})"


def ratios(case: dict[str, Any]) -> tuple[float, float]:
    """Planned over measured: memory, time."""
    return (
        case["planned_bytes"] / case["measured_bytes"],
        case["planned_seconds"] / case["measured_seconds"],
    )


def page(found: list[dict[str, Any]]) -> str:
    """The table of all cases."""
    head = ["# Plans against what then happened", "", "| training | memory, planned / measured | time | peak | steps |"]
    rows = [
        f"| {case['name']} | {ratios(case)[0]:.2f} | {ratios(case)[1]:.2f} | "
        f"{case['measured_bytes'] / 2**30:.2f} GiB | {case['measured_seconds']:.1f} s |"
        for case in found
    ]
    return "\n".join([*head, "| --- | --- | --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2:])
    else:
        main()
