"""What a library refuses is not supported; what went wrong stays an error."""

import ctypes
import json
from pathlib import Path

import pytest
import torch

from bench.trial.refusals import refusal
from bench.trial.room import Room
from kernels.cuda import Kernel

REFUSED = (
    RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built."),
    RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph."),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(…)`"),
    RuntimeError("No available kernel. Aborting execution."),
    RuntimeError("FlashAttention only supports Ampere GPUs or newer."),
    RuntimeError("FlashAttention backward only supports head dimension at most 256"),
    NotImplementedError("Could not run 'aten::_scaled_dot_product_cudnn_attention' with arguments from 'CPU'"),
    NotImplementedError("\"softmax\" not implemented for 'Half'"),
)
ERRORS = (
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDNN_STATUS_NOT_SUPPORTED; CUDA error: misaligned address"),
    RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasLtMatmul`"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    torch.OutOfMemoryError("No available kernel. Aborting execution."),
    ValueError("CUDNN_STATUS_NOT_SUPPORTED"),
)


@pytest.mark.parametrize("error", REFUSED, ids=str)
def test_a_refusal_is_not_supported(error):
    assert refusal(error)
    failure = Room.explain(error)
    assert failure.status == "skipped" and len(failure.evidence) < 50


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_an_error_stays_one(error):
    assert refusal(error) is None
    assert Room.explain(error).status == "error"


def test_an_error_inside_a_package_is_told_by_the_authors_line():
    """`torch.ad` is raised in torch/__init__.py, a wrong call of a launcher in kernels/cuda/: nothing is to be mended
    there."""
    launcher = Kernel("nothing.cu", "nothing")
    for mistake in (lambda: torch.ad, lambda: json.loads("{"), lambda: launcher(1)):  # type: ignore
        with pytest.raises((AttributeError, ValueError, TypeError)) as caught:
            mistake()
        line = mistake.__code__.co_firstlineno
        assert Room.explain(caught.value).evidence.endswith(f" ({Path(__file__).name} line {line})")


def test_a_symbol_that_a_library_lacks_is_told_with_what_would_export_it():
    with pytest.raises(AttributeError) as caught:
        ctypes.CDLL(None)["residual_forwrd"]
    assert "EXPORT void residual_forwrd(" in Room.explain(caught.value).evidence


def test_what_aten_refuses_here_is_known_by_its_own_words():
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(NotImplementedError) as caught:
        torch.ops.aten._scaled_dot_product_cudnn_attention(q, q, q, None, True)
    assert refusal(caught.value)
