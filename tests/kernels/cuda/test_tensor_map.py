"""Tensor maps of CUDA tensors, with a driver that writes down what it is asked; those of the simulator are held by
tests/bench/simulate/test_hopper.py."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.cuda import gpu, persistent, tensor_map
from kernels.cuda.tensor_map import DRIVER_BITS, DRIVER_KINDS, DRIVER_SWIZZLES, PROMOTE_TO_256


class Driver:
    """What cuTensorMapEncodeTiled was asked, call by call; it answers `code`, and bytes that begin with the number of
    the call."""

    def __init__(self):
        self.asked, self.code = [], 0

    def cuTensorMapEncodeTiled(self, to, kind, axes, address, sizes, strides, boxes, steps, *modes):
        assert to.value % 64 == 0
        ctypes.memset(to.value, len(self.asked) + 1, 128)
        numbers = [list(each)[:n] for each, n in ((sizes, 5), (strides, axes.value - 1), (boxes, 5), (steps, 5))]
        self.asked.append((kind.value, axes.value, address.value, *numbers, *(m.value for m in modes)))
        return self.code


@pytest.fixture
def driver(monkeypatch):
    there = Driver()
    monkeypatch.setattr(gpu, "driver", lambda: there)
    monkeypatch.setattr(tensor_map, "place", lambda tensor: 1)
    tensor_map._kept.cache_clear()
    yield there
    tensor_map._kept.cache_clear()


def test_the_driver_is_asked_for_the_tensor_from_its_contiguous_axis_on(driver):
    tensor = torch.empty(6, 10, 80, dtype=torch.float16)[:, :, 16:64]
    made = tensor_map.tensor_map(tensor, (2, 5, 32), 64, name="a_map")
    strides = [80 * 2, 10 * 80 * 2]
    (asked,) = driver.asked
    assert asked == (6, 3, tensor.data_ptr(), [48, 10, 6], strides, [32, 5, 2], [1, 1, 1], 0, 2, PROMOTE_TO_256, 0)
    assert made.value == b"\1" * 128
    assert (made.name, made.tensors, made.const, made.dtype, made.device) == ("a_map", (), True, torch.float16, 1)


def test_a_map_is_made_anew_for_another_address_box_or_swizzle_and_kept_for_the_same(driver):
    tensor = torch.empty(3, 16, 64, dtype=torch.bfloat16)
    calls = [(tensor[0], (8, 64), 128), (tensor[1], (8, 64), 128), (tensor[1], (8, 32), 128), (tensor[1], (8, 32), 64)]
    first = [tensor_map.tensor_map(*call).value for call in calls]
    again = [tensor_map.tensor_map(*call).value for call in calls]
    assert len(driver.asked) == len(set(first)) == len(calls) and again == first


def test_what_the_driver_refuses_is_said_and_asked_again(driver):
    driver.code = 1
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\(8, 64\).*\(8, 32\).*cuTensorMapEncodeTiled: 1"):
            tensor_map.tensor_map(torch.empty(8, 64), (8, 32))
    assert len(driver.asked) == 2


@pytest.mark.parametrize(
    ("tensor", "box", "problem"),
    [
        (torch.zeros(8, 8, dtype=torch.complex128), (8, 8), "elements are of"),
        (torch.zeros(0, 8), (8, 8), "an axis has"),
        (torch.zeros(8, 6), (8, 4), "strides"),
        (torch.zeros(8, 8)[:, 1:], (8, 4), "begin"),
    ],
)
def test_the_driver_is_not_asked_for_what_it_would_refuse(driver, tensor, box, problem):
    with pytest.raises(ValueError, match=problem):
        tensor_map.tensor_map(tensor, box)
    assert not driver.asked


def test_the_numbers_are_those_of_the_drivers_header():
    driver = pytest.importorskip("cuda.bindings.driver")
    kinds, swizzles = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    names = {torch.int32: "INT32", torch.int64: "INT64", torch.float16: "FLOAT16", torch.float32: "FLOAT32"}
    names |= {torch.float64: "FLOAT64", torch.bfloat16: "BFLOAT16"}
    assert {t: getattr(kinds, f"CU_TENSOR_MAP_DATA_TYPE_{name}") for t, name in names.items()} == DRIVER_KINDS
    bits = {n: getattr(kinds, f"CU_TENSOR_MAP_DATA_TYPE_UINT{8 * n}") for n in (1, 2, 4, 8)}
    assert bits == DRIVER_BITS
    wanted = {n: getattr(swizzles, f"CU_TENSOR_MAP_SWIZZLE_{n}B") for n in (32, 64, 128)}
    assert wanted | {0: swizzles.CU_TENSOR_MAP_SWIZZLE_NONE} == DRIVER_SWIZZLES
    assert driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B == PROMOTE_TO_256


def test_no_more_blocks_than_items_or_multiprocessors(monkeypatch):
    assert persistent.persistent_blocks(1, torch.empty(1)) == 1
    assert persistent.persistent_blocks(50, torch.empty(1)) == persistent.SIMULATED
    on_a_card: Any = SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(persistent, "multiprocessors", lambda tensor: 132)
    found = [persistent.persistent_blocks(n, on_a_card, each) for n, each in ((100, 1), (200, 1), (200, 2), (300, 2))]
    assert found == [100, 132, 200, 264]
