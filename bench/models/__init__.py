"""A model as a list of calls over memory that is planned once."""

from typing import NamedTuple

RECOMPUTE = "recompute"  # the shape of such a call
UPDATE = ("global_norm", "adamw")  # the calls that end a step, once, however many micro-batches it has


class CallId(NamedTuple):
    """Which call of the step: a layer, the name of its shape in the model ("" if it has one only), and the phase."""

    layer: str
    shape: str
    phase: str

    @property
    def place(self) -> str:
        """Layer and shape, as `--kernels` and tables name them: "matmul/qkv", "attention"."""
        return f"{self.layer}/{self.shape}" if self.shape else self.layer

    def __str__(self) -> str:
        """As records and messages name it: "matmul/qkv forward"."""
        return f"{self.place} {self.phase}"
