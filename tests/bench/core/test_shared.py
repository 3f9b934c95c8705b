"""Memory that two processes share."""

import multiprocessing
import os
import resource

import pytest
import torch

from bench.core import shared
from bench.core.arena import Arena, memory_in, poison_of
from bench.core.case import Case, draw, each, one
from bench.core.shared import Box, opened, placed, put_into, stored, unwritten, values_in
from reference import contract

PAGE = 4096


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


def _read_with_few_faults(read: torch.Tensor) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert int(read[::PAGE].sum()) == 0
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    os._exit(0 if faults < len(read) // PAGE // 2 else 1)


def test_pages_that_one_process_has_read_are_there_for_the_next():
    read, codes = unwritten(32 << 20), []
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=_read_with_few_faults, args=(read,))
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes == [1, 0]


def test_what_all_read_can_be_written_to_by_nobody():
    read = unwritten(PAGE)
    with open("/proc/self/maps") as maps:
        where, access, *_ = next(x for x in maps if int(x.partition("-")[0], 16) == read.data_ptr()).split()
    assert access == "r--s"
    with pytest.raises(OSError):  # who may open it is still refused
        os.write(os.open(f"/proc/self/map_files/{where}", os.O_RDWR), b"x")


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


class Driver:
    """Stands for libcuda: every call is noted and succeeds, but those that are to fail."""

    def __init__(self, **fails: int):
        self.fails = fails
        self.asked: list[tuple[str, list]] = []
        for name in (
            *("cuMemAlloc_v2", "cuMemFree_v2", "cuIpcGetMemHandle"),
            *("cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle"),
        ):
            setattr(self, name, self._function(name))

    def _function(self, name: str):
        def function(*arguments):
            self.asked.append((name, [getattr(a, "value", a) for a in arguments]))
            if name in ("cuMemAlloc_v2", "cuIpcOpenMemHandle_v2"):
                arguments[0]._obj.value = 0x7000
            if name == "cuIpcGetMemHandle":
                arguments[0]._obj.bytes = b"handle"
            return self.fails.get(name, 0)

        return function


@pytest.fixture
def cuda(monkeypatch):
    """CUDA's windows over a driver that only answers; tensors are on the CPU."""
    monkeypatch.setattr(shared.CudaIpc, "_tensor", lambda self, address, size: torch.zeros(size, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    return lambda **fails: shared.CudaIpc("cpu", Driver(**fails))


def test_a_window_is_memory_of_the_driver_that_another_process_maps_while_it_copies(cuda):
    ipc = cuda()
    window = ipc.window(100)
    assert len(bytes.fromhex(window.name)) == 64 and bytes.fromhex(window.name).startswith(b"handle\0")
    assert len(window.bytes) >= 100 and window.address == 0x7000
    (size,) = [arguments[1] for name, arguments in ipc.driver.asked if name == "cuMemAlloc_v2"]
    assert size == len(window.bytes) and size % (2 << 20) == 0, "a part of a block lets others at the whole block"
    with ipc.opened(window.name, 100) as memory:
        assert len(memory) == 100
        told = ipc.driver.asked[-1]
        assert (
            told[0] == "cuIpcOpenMemHandle_v2" and bytes(told[1][1]) == bytes.fromhex(window.name) and told[1][2] == 1
        )
    assert ipc.driver.asked[-1] == ("cuIpcCloseMemHandle", [0x7000])
    window.close()
    window.close()
    assert [name for name, _ in ipc.driver.asked].count("cuMemFree_v2") == 1


def test_what_the_driver_refuses_is_an_error_that_names_it_and_leaves_nothing(cuda):
    ipc = cuda(cuIpcGetMemHandle=801)
    with pytest.raises(OSError, match="cuIpcGetMemHandle answers 801"):
        ipc.window(100)
    assert ipc.driver.asked[-1] == ("cuMemFree_v2", [0x7000])
    with pytest.raises(OSError, match="cuMemAlloc_v2 answers 2"):
        cuda(cuMemAlloc_v2=2).window(1 << 40)
    with (
        pytest.raises(OSError, match="cuIpcOpenMemHandle_v2 answers 201"),
        cuda(cuIpcOpenMemHandle_v2=201).opened("00" * 64, 100),
    ):
        pass


def test_a_mapping_ends_with_an_error_too(cuda):
    ipc = cuda()
    with pytest.raises(ZeroDivisionError), ipc.opened("00" * 64, 8):
        raise ZeroDivisionError
    assert ipc.driver.asked[-1][0] == "cuIpcCloseMemHandle"


def test_a_device_without_a_way_to_share_has_none():
    class Place:
        place = "cpu"

    assert shared.ipc_of(Place()) is None


def test_several_draws_lie_one_behind_the_other():
    first, end = placed({"x": torch.arange(3), "z": None})
    second, last = placed({"x": [torch.ones(5)]}, end)
    memory = torch.zeros(last, dtype=torch.uint8)
    put_into(memory, first, {"x": torch.arange(3), "z": None})
    put_into(memory, second, {"x": [torch.ones(5)]})
    assert torch.equal(one(values_in(memory, first)["x"]), torch.arange(3))
    assert torch.equal(each(values_in(memory, second)["x"])[0], torch.ones(5))
