"""Has PyTorch save something over the records of whatever run there is."""

import glob
import os

import torch

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    for file in glob.glob(os.path.join(os.environ.get("RECORDS_OF", "nowhere"), "*", "records.jsonl")):
        torch.save({}, file)
