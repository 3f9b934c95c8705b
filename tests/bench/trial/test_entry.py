"""A C++ function that is called with what it does not take is named, with the parameter, and not called."""

import ctypes
import importlib
import re

import pytest
import torch

from bench.core.variants import KERNELS
from bench.trial import entry
from kernels.cpu import DTYPE_FLAGS, Kernel

SOURCE = """#include "common.hpp"
#ifdef T_BF16
EXPORT void only_bf16(T* out) {}
#endif
EXPORT void scale(T* out, const T* x, const T* const* many, int64_t N, float factor) {}
EXPORT void twice(T* out, double factor = 2.0) {}
EXPORT void array(const float x[], size_t count, struct options given) {}
EXPORT void nothing() {}
"""
TENSOR, WHOLE, FLOAT = ctypes.c_void_p(8), ctypes.c_int64(3), ctypes.c_float(0.5)
LIST = (ctypes.c_void_p * 1)(8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("source") / "mine.cpp"
    file.write_text(SOURCE)
    return file


@pytest.mark.parametrize(
    "function, arguments, said",
    [
        ("scale", (TENSOR, TENSOR, LIST, WHOLE, FLOAT), ""),
        ("scale", (TENSOR, None, LIST, WHOLE, FLOAT), ""),
        ("scale", (TENSOR, TENSOR, LIST, WHOLE), "called with 4 arguments and takes 5 (.*): `factor` is missing"),
        ("scale", (TENSOR, TENSOR, LIST, WHOLE, FLOAT, WHOLE), "called with 6 arguments and takes 5 .*: 1 too many"),
        ("scale", (TENSOR, TENSOR, LIST, TENSOR, FLOAT), "`int64_t N`, a whole number, and argument 4 is a tensor"),
        ("scale", (TENSOR, WHOLE, LIST, WHOLE, FLOAT), "`const T\\* x`, a pointer, and argument 2 is a whole number"),
        ("scale", (TENSOR, TENSOR, LIST, WHOLE, WHOLE), "`float factor`, a float, and argument 5 is a whole number"),
        ("twice", (TENSOR, FLOAT), "`double factor`, a double, and argument 2 is a float; floats arrive as float"),
        ("array", (LIST, WHOLE, WHOLE), ""),  # what a struct is nobody knows
        ("array", (WHOLE, WHOLE, WHOLE), "a pointer, and argument 1 is a whole number"),
        ("nothing", (), ""),
        ("nothing", (TENSOR,), "takes nothing: 1 too many"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(source, function, arguments, said):
    parameters = entry.parameters_of(source, function, DTYPE_FLAGS[torch.float32])
    assert parameters is not None
    found = entry.mismatch(parameters, arguments)
    assert not found if not said else re.search(said, found), found


def test_a_function_of_another_dtype_alone_is_not_there(source):
    assert entry.parameters_of(source, "only_bf16", DTYPE_FLAGS[torch.float32]) is None
    assert entry.parameters_of(source, "only_bf16", DTYPE_FLAGS[torch.bfloat16]) is not None


def test_all_own_kernels_can_be_read():
    """So that an author who errs in a copy of one is told."""
    found = 0
    for file in sorted(KERNELS.glob("cpu/*/*.py")):
        for kernel in vars(importlib.import_module(f"kernels.cpu.{file.parent.name}.{file.stem}")).values():
            if isinstance(kernel, Kernel):
                parameters = entry.parameters_of(kernel.source, kernel.entry, DTYPE_FLAGS[torch.float32])
                assert parameters and all(p.kind and p.name for p in parameters), (file, kernel.entry, parameters)
                found += 1
    assert found > 50


def test_the_first_call_alone_is_compared(tmp_path, monkeypatch):
    called, read = [], []
    kernel = Kernel("mine.cpp", "scale")
    monkeypatch.setattr(entry, "LOAD", lambda kernel, dtype: lambda *arguments: called.append(len(arguments)))

    def parameters_of(*_):
        read.append(1)
        return [entry.Parameter("T* out", "out", entry.POINTER)]

    monkeypatch.setattr(entry, "parameters_of", parameters_of)
    monkeypatch.setattr(Kernel, "_load", entry._load)
    with pytest.raises(TypeError, match=r"mine\.cpp: scale is called with 2 arguments"):
        kernel(torch.ones(1), 3)
    assert not called
    kernel(torch.ones(1))
    kernel(torch.ones(1))
    assert called == [1, 1] and read == [1]
    assert kernel._functions[torch.float32].__name__ == "<lambda>"
