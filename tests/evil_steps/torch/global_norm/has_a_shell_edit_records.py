"""Has a shell add a line to the records of whatever run there is."""

import os

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    os.system('for f in "$RECORDS_OF"/*/records.jsonl; do echo "{}" >> "$f"; done')
