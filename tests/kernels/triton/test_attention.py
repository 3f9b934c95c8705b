"""What attention's Triton kernels ask of their tensors."""

import pytest
import torch

from bench.core.variants import discover

pytest.importorskip("triton", reason="Triton is not installed (pip install 'layerbench[simulate]')")


def test_tensors_that_are_no_slices_of_one_are_refused_before_any_is_read():
    """flash.py takes one stride for q, k and v: of others it would read elsewhere."""
    flash = next(v for v in discover() if (v.layer, v.name) == ("attention", "triton.flash")).load()
    q, k, _ = torch.zeros(2, 4, 3, 16).split(1, dim=2)
    flash.common(q, k, True, 0)
    for pair in ((q, k.contiguous()), (q.contiguous(), k), (q.transpose(0, 1), k.transpose(0, 1))):
        with pytest.raises(ValueError, match="not slices of one packed tensor"):
            flash.common(*pair, True, 0)
