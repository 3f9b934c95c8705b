"""Every tensor of a training step, planned once."""

from collections.abc import Collection

import torch

from bench.core.case import DTYPES
from bench.machine.devices import Device, open_device
from bench.models.calls import Batch
from reference.models.model import Model

ALIGN = 64  # bytes: one cache line, one AVX-512 register


class Memory:
    """Every tensor of a training step, allocated here (`new`, `kept`) and nowhere else; activations are the program's.

    Parameters lie in one flat buffer, gradients in another, m, v and (below fp32) the fp32 masters likewise;
    `params`, `grads`, … are their views by name, in the order of `model.parameter_shapes()`.

    recompute: of `program.recomputable(model)`. These outputs are not kept for each block: all blocks write them into
    one buffer, and backward computes them again. That saves `saved_bytes`.
    masters: False leaves the fp32 masters out (below fp32): weights are then rounded at random (bench.models.rounding).
    """

    def __init__(
        self,
        model: Model,
        B: int,
        T: int,
        dtype: str,
        device: str | Device = "cpu",
        recompute: Collection[str] = (),
        masters: bool = True,
    ):
        if not 1 <= T <= model.max_t:
            raise ValueError(f"T={T} is outside 1…{model.max_t}, the positions of {model.name}")
        self.model, self.B, self.T, self.dtype = model, B, T, dtype
        self.device = open_device(device) if isinstance(device, str) else device
        self.recompute = tuple(recompute)
        self.tensors: list[torch.Tensor] = []  # all of them, as allocated
        self.constants: list[torch.Tensor] = []  # those of them that nothing writes
        self.saved_bytes = 0
        self.params, self.flat_params = self._flat(dtype)
        self.grads, self.flat_grads = self._flat(dtype)
        self.m, self.flat_m = self._flat("fp32")
        self.v, self.flat_v = self._flat("fp32")
        self.masters: dict[str, torch.Tensor] | None = None
        self.flat_masters: torch.Tensor | None = None
        self.has_masters = dtype in ("bf16", "fp16") and masters
        if self.has_masters:
            self.masters, self.flat_masters = self._flat("fp32")

        self.tokens = self.new(B, T, dtype="int")
        self.targets = self.new(B, T, dtype="int")
        self.losses = self.new(B, T, dtype="fp32")
        self.dlosses = self.new(B, T, dtype="fp32")
        self.step, self.lr, self.norm, self.grad_scale, self.loss, self.micro_loss = (
            self.new(dtype="fp32") for _ in range(6)
        )

    def new(self, *sizes: int, dtype: str | None = None) -> torch.Tensor:
        """A tensor of zeros, of the working dtype unless another is named."""
        made = torch.zeros(sizes, dtype=DTYPES[dtype or self.dtype], device=self.device.place)
        self.tensors.append(made)
        return made

    def constant(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor of the device that holds these values for good: calls read it, and nothing writes it."""
        placed = values.to(self.device.place)
        self.tensors.append(placed)
        self.constants.append(placed)
        return placed

    def kept(self, layer: str, count: int, *sizes: int) -> list[torch.Tensor]:
        """One tensor for each of `count` outputs, or, where the layer is recomputed, one for all."""
        if layer not in self.recompute:
            return [self.new(*sizes) for _ in range(count)]
        shared = self.new(*sizes)
        self.saved_bytes += (count - 1) * shared.nbytes
        return [shared] * count

    def inbox(self, micro_batches: int) -> list[Batch]:
        """Where a step's batches are put before it starts: (tokens, targets) of each micro-batch."""
        tokens, targets = (self.new(micro_batches, self.B, self.T, dtype="int") for _ in range(2))
        return list(zip(tokens.unbind(), targets.unbind(), strict=True))

    def _flat(self, dtype: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """One buffer with room for every parameter, and its views by name."""
        align = ALIGN // DTYPES[dtype].itemsize
        starts, total = {}, 0
        for name, sizes in self.model.parameter_shapes().items():
            starts[name] = total
            total += -(-torch.Size(sizes).numel() // align) * align
        flat = self.new(total, dtype=dtype)
        views = {
            name: flat[starts[name] : starts[name] + torch.Size(sizes).numel()].view(sizes)
            for name, sizes in self.model.parameter_shapes().items()
        }
        return views, flat

    def fill_random(self) -> None:
        """Positive numbers below 1 into everything but constants, valid ids into tokens and targets: contents to time
        with."""
        constant = {id(tensor) for tensor in self.constants}
        for tensor in self.tensors:
            if id(tensor) in constant:
                continue
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 1.0)
            else:
                tensor.random_(self.model.v)

    def btc(self, matrix: torch.Tensor) -> torch.Tensor:
        """(B*T, X) as (B, T, X)."""
        return matrix.view(self.B, self.T, -1)
