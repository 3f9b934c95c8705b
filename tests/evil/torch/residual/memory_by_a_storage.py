"""Reaches memory by its address through a storage of PyTorch's."""

import torch

CAUGHT_BY = "source"
SLOW = True
KEPT = [0.5]


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    torch._C._construct_storage_from_data_pointer(id(KEPT[0]), torch.device("cpu"), 24)
