"""Adds a line to the records of whatever run there is."""

import os
from pathlib import Path

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    for file in Path(os.environ["RECORDS_OF"]).glob("*/records.jsonl"):
        with file.open("a") as records:
            records.write("\n")
