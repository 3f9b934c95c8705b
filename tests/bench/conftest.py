"""For all tests of the harness: a room sets the threads of torch in its own process; no other test inherits them."""

import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
