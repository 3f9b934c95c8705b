"""Slices of one workspace have an end each, though the kernel may write behind it."""

import re
import struct

import pytest
import torch

from bench.simulate import SimulationError, run_ptx
from bench.simulate.launcher import rows
from kernels.cuda import Argument
from tests.bench.simulate.kernels import compiled, marked_lines, names

N = 64
BUGS = [k for k in names("bounds.cu") if marked_lines("bounds.cu", k)]


def pointer(name: str, *tensors: torch.Tensor, const=False) -> Argument:
    return Argument(name, struct.pack("<Q", tensors[0].data_ptr()), tensors, const)


def run(kernel: str, seed=0):
    whole = torch.zeros(3 * N)
    a, b = whole[:N], whole[N : 2 * N]
    index, table = torch.arange(N), torch.tensor([a.data_ptr(), b.data_ptr()])
    pair = Argument("pair", struct.pack("<QQi4x", a.data_ptr(), b.data_ptr(), N), (a, b))
    arguments = [
        *(pointer("a", a), pointer("b", b), pointer("index", index, const=True)),
        *(pointer("table", table, a, b), pair, Argument("n", struct.pack("<i", N))),
    ]
    binary = compiled("bounds.cu")
    run_ptx(binary.code.decode(), binary.names[kernel], (1, 1, 1), (N, 1, 1), 0, arguments, seed=seed)
    return a, b


@pytest.mark.parametrize("kernel", BUGS)
def test_what_leaves_its_slice_is_found(kernel):
    with pytest.raises(SimulationError) as caught:
        run(kernel)
    first = caught.value.reports[0]
    (line,) = marked_lines("bounds.cu", kernel)
    own, other = ("b", "a") if kernel == "before_the_slice" else ("a", "b")
    assert first.kind == "out-of-bounds" and line in first.message
    assert f"of `{own}`, in `{other}`" in first.message


@pytest.mark.parametrize("kernel", [k for k in names("bounds.cu") if k not in BUGS])
def test_what_stays_in_one_of_its_slices_passes(kernel):
    run(kernel)


@pytest.mark.parametrize(
    ("tensor", "wanted"),
    [
        (torch.zeros(4, 6), None),
        (torch.zeros(4, 6)[:, :2], (24, 8)),
        (torch.zeros(3, 4, 6)[..., :2], (24, 8)),
        (torch.zeros(4, 6).t(), None),
        (torch.zeros(3, 4, 6)[:, :2, :2], None),  # no one distance
        (torch.zeros(5)[::2], (8, 4)),
        (torch.zeros(4, 1).expand(4, 6), None),
        (torch.zeros(()), None),
    ],
)
def test_rows_of_a_view(tensor, wanted):
    assert rows(tensor) == (wanted or (0, 2**64 - 1))


def test_the_gap_between_rows_is_not_the_views(tmp_path):
    packed = torch.zeros(4, 32)
    arguments = [pointer("a", packed[:, :16]), pointer("b", packed), pointer("index", torch.arange(N), const=True)]
    arguments += [pointer("table", torch.zeros(2)), Argument("pair", bytes(24)), Argument("n", struct.pack("<i", N))]
    binary = compiled("bounds.cu")
    with pytest.raises(SimulationError, match=re.escape("between the rows of `a`, 0 bytes behind the end of one")):
        run_ptx(binary.code.decode(), "each_in_its_slice", (1, 1, 1), (N, 1, 1), 0, arguments, seed=0)
