import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are tiny: on a busy machine a second thread only waits at barriers."""
    torch.set_num_threads(1)
