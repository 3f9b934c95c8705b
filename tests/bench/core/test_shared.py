"""Memory that two processes share."""

import multiprocessing
import os

import pytest
import torch

from bench.core.arena import Arena, memory_in, poison_of
from bench.core.case import Case, draw, each, one
from bench.core.shared import Box, opened, stored, values_in
from reference import contract


def _write(path: str, size: int) -> None:
    opened(path, size).fill_(9)


def _cannot_write(path: str) -> None:
    try:
        file = os.open(path, os.O_RDWR)
        os.write(file, b"x")
    except OSError:
        os._exit(0)
    os._exit(1)


def test_another_process_reads_it_and_its_writes_stay_there():
    box, given = stored({"x": torch.arange(10), "y": [torch.ones(3), torch.zeros(2, 2)], "z": None})
    process = multiprocessing.get_context("fork").Process(target=_write, args=(box.path, box.size))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = values_in(opened(given.path, given.size), given.table)
    assert torch.equal(one(found["x"]), torch.arange(10)) and found["z"] is None
    assert [t.shape for t in each(found["y"])] == [(3,), (2, 2)]


def test_what_the_judge_drew_cannot_be_written_to():
    box, _ = stored({"x": torch.arange(10)})
    process = multiprocessing.get_context("fork").Process(target=_cannot_write, args=(box.path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_box_that_is_gone_or_too_small_is_an_error():
    box = Box(100)
    with pytest.raises(OSError, match="smaller"):
        opened(box.path, 200)
    box.close()
    with pytest.raises(OSError):
        opened(box.path, 100)


@pytest.mark.parametrize("layer", ["attention", "adamw", "fused_classifier", "layernorm"])
def test_what_is_handed_back_is_laid_out_again(layer):
    module = contract.load(layer)
    phase = contract.phases_of(module)[-1]
    case = Case(layer, phase, contract.overwriting(module, phase, module.RAGGED[0], "bf16"), "test")
    arena = Arena(case, workspace_bytes=1000, seed=7)
    values = draw(case)
    arena.load(values, seed=3)
    arena.reset(seed=11)
    box = Box(arena.size())
    arena.hand_back(box.bytes)
    there = Arena(case, workspace_bytes=1000, seed=7, memory=memory_in(opened(box.path, box.size)))
    there.poison = poison_of(11)
    there.initial = {n: values[n] for n in there.outputs if values.get(n) is not None}
    assert there.broken_fences() == {}
    assert there.survivors().keys() == arena.survivors().keys()
    for name in arena.inputs:
        for a, b in zip(each(arena.inputs[name]), each(there.inputs[name]), strict=True):
            assert torch.equal(a, b)
    # A byte outside, in the workspace's bands too, is still outside.
    arena.fences["workspace"].raw[-1] += 1
    arena.hand_back(box.bytes)
    assert list(
        there.broken_fences()
        or Arena(case, workspace_bytes=1000, seed=7, memory=memory_in(opened(box.path, box.size))).broken_fences()
    ) == ["workspace"]


def test_fewer_bytes_than_a_case_has_are_an_error():
    case = Case("residual", "forward", {"N": 100, "dtype": "fp32"}, "test")
    with pytest.raises(ValueError, match="fewer than the case has"):
        Arena(case, memory=memory_in(torch.zeros(100, dtype=torch.uint8)))
