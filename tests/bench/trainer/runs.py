"""Small training runs: a model of 300 tokens under gpt2-tiny's name, and shards for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench import HOME
from bench.text.shards import write_tokens
from bench.trainer.journal import events
from reference.models.gpt2 import GPT2
from tests import commands

SMALL = GPT2("gpt2-tiny", L=2, NH=2, C=32, max_t=32, v=300)
KERNELS = ("--kernels", "torch.eager", "--batch", 2, "--seq", 8, "--threads", 1, "--no-spot-checks")
# The same model in a process of its own.
COMMAND = """
from bench import cli, train
from reference.models import MODELS
from tests.bench.trainer.runs import SMALL
MODELS["gpt2-tiny"] = SMALL
cli.run(train.main)
"""


def shards(folder: Path, tokens: int = 700, seed: int = 0) -> Path:
    """Two training shards of odd lengths and one for validation; of 40 tokens that can be learnt."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("a_train.bin", tokens), ("b_train.bin", tokens // 2 + 3), ("c_val.bin", tokens // 3)):
        walk = np.cumsum(rng.integers(1, 4, count)) % 40
        write_tokens(folder / name, walk.astype(np.uint16))
    return folder


def train(data: Path, *options: Any) -> commands.Done:
    """`bench.train` in this process."""
    return commands.run("train", SMALL.name, "--data", data, *KERNELS, *options)


def start(data: Path, *options: Any) -> subprocess.Popen:
    """`bench.train` in a process of its own."""
    words = [*map(str, (SMALL.name, "--data", data, *KERNELS, *options))]
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", COMMAND, *words], stdout=pipe, stderr=pipe, text=True, cwd=HOME)


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """(loss, norm) of each step; of one that was taken twice the last."""
    return {e["step"]: (e["loss"], e["norm"]) for e in events(run) if e["event"] == "step"}


def told(run: Path, event: str) -> list[Any]:
    return [e for e in events(run) if e["event"] == event]


def kept(run: Path, step: int) -> dict[str, bytes]:
    """The tensors of a checkpoint, and what it remembers of the run, but for its options."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    found = {name: (folder / name).read_bytes() for name in ("weights.safetensors", "optimizer.safetensors")}
    rest = json.loads((folder / "state.json").read_text())["rest"]
    return found | {name: json.dumps(value).encode() for name, value in rest.items() if name != "options"}
