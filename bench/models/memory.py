"""Every tensor of a training step, planned once."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from bench.core.case import DTYPES
from bench.machine.devices import Device, open_device
from bench.models.calls import Batch
from reference.models import Model

ALIGN = 64  # bytes: one cache line, one AVX-512 register


@dataclass
class Activations:
    """What one block's forward leaves for its backward. Matrices are (B*T, …); `_btc` views are (B, T, C)."""

    norm1: torch.Tensor  # ln1's output, x of qkv
    qkv: torch.Tensor
    attention: torch.Tensor
    lse: torch.Tensor
    residual1: torch.Tensor  # the stream after attention
    norm2: torch.Tensor
    mean2: torch.Tensor
    rstd2: torch.Tensor
    pre_gelu: torch.Tensor
    gelu: torch.Tensor
    residual2: torch.Tensor  # the stream after the MLP
    mean: torch.Tensor  # statistics of the layernorm that follows the MLP: the next block's ln1, or lnf
    rstd: torch.Tensor


class Memory:
    """Every tensor of the training step, allocated here and nowhere else.

    Parameters lie in one flat buffer, gradients in another, m, v and (below fp32) the fp32 masters likewise;
    `params`, `grads`, … are their views by name, in the order of `model.parameter_shapes()`.

    recompute: of RECOMPUTABLE. These outputs are not kept for each block: all blocks write them into one buffer, and
    backward computes them again. That saves `saved_bytes`.
    """

    def __init__(
        self,
        model: Model,
        B: int,
        T: int,
        dtype: str,
        device: str | Device = "cpu",
        recompute: Collection[str] = (),
    ):
        if not 1 <= T <= model.max_t:
            raise ValueError(f"T={T} is outside 1…{model.max_t}, the positions of {model.name}")
        self.model, self.B, self.T, self.dtype = model, B, T, dtype
        self.device = open_device(device) if isinstance(device, str) else device
        self.recompute = tuple(recompute)
        self.tensors: list[torch.Tensor] = []  # all of them, as allocated
        M, C, NH = B * T, model.C, model.NH
        self.params, _ = self._flat(dtype)
        self.grads, self.flat_grads = self._flat(dtype)
        self.m, self.flat_m = self._flat("fp32")
        self.v, self.flat_v = self._flat("fp32")
        self.masters: dict[str, torch.Tensor] | None = None
        if dtype in ("bf16", "fp16"):
            self.masters, _ = self._flat("fp32")

        self.tokens = self._new(B, T, dtype="int")
        self.targets = self._new(B, T, dtype="int")
        self.embedded = self._new(B, T, C)
        self.mean, self.rstd = (self._new(B, T, dtype="fp32") for _ in range(2))  # of block 0's ln1
        norms = self._kept("layernorm", 2 * model.L, M, C)
        gelus = self._kept("gelu", model.L, M, 4 * C)
        if "layernorm" in recompute:  # backward reads the statistics that forward saved, not these
            self.mean_again, self.rstd_again = (self._new(B, T, dtype="fp32") for _ in range(2))
        self.blocks = [
            Activations(
                norm1=norms[2 * i],
                qkv=self._new(M, 3 * C),
                attention=self._new(M, C),
                lse=self._new(B, NH, T, dtype="fp32"),
                residual1=self._new(M, C),
                norm2=norms[2 * i + 1],
                mean2=self._new(B, T, dtype="fp32"),
                rstd2=self._new(B, T, dtype="fp32"),
                pre_gelu=self._new(M, 4 * C),
                gelu=gelus[i],
                residual2=self._new(M, C),
                mean=self._new(B, T, dtype="fp32"),
                rstd=self._new(B, T, dtype="fp32"),
            )
            for i in range(model.L)
        ]
        self.final = self._new(M, C)  # lnf's output
        self.logits = self._new(M, model.vp)  # becomes dlogits
        self.losses = self._new(B, T, dtype="fp32")
        self.dlosses = self._new(B, T, dtype="fp32")

        # Scratch, used again by every block: a branch's output in forward; in backward the gradient of the
        # stream (two: read one, write the other), of a C-wide branch, and of the widest activations.
        self.branch = self._new(M, C)
        self.streams = [self._new(M, C), self._new(M, C)]
        self.dbranch = self._new(M, C)
        self.dwide = self._new(M, 4 * C)
        self.dqkv = self.dwide.view(-1)[: M * 3 * C].view(M, 3 * C)

        self.step, self.lr, self.norm, self.grad_scale, self.loss, self.micro_loss = (
            self._new(dtype="fp32") for _ in range(6)
        )

    def _new(self, *sizes: int, dtype: str | None = None) -> torch.Tensor:
        made = torch.zeros(sizes, dtype=DTYPES[dtype or self.dtype], device=self.device.place)
        self.tensors.append(made)
        return made

    def _kept(self, layer: str, count: int, *sizes: int) -> list[torch.Tensor]:
        """One tensor for each of `count` outputs, or, where the layer is recomputed, one for all."""
        if layer in self.recompute:
            return [self._new(*sizes)] * count
        return [self._new(*sizes) for _ in range(count)]

    def inbox(self, micro_batches: int) -> list[Batch]:
        """Where a step's batches are put before it starts: (tokens, targets) of each micro-batch."""
        tokens, targets = (self._new(micro_batches, self.B, self.T, dtype="int") for _ in range(2))
        return list(zip(tokens.unbind(), targets.unbind(), strict=True))

    @property
    def saved_bytes(self) -> int:
        """What recomputation saves: one output a block, less the buffers for all."""
        M, C, L = self.B * self.T, self.model.C, self.model.L
        saved = 0
        if "gelu" in self.recompute:
            saved += (L - 1) * M * 4 * C * self.params["wte"].element_size()
        if "layernorm" in self.recompute:
            saved += (2 * L - 1) * M * C * self.params["wte"].element_size()
            saved -= self.mean_again.nbytes + self.rstd_again.nbytes
        return saved

    def _flat(self, dtype: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """One buffer with room for every parameter, and its views by name."""
        align = ALIGN // DTYPES[dtype].itemsize
        starts, total = {}, 0
        for name, sizes in self.model.parameter_shapes().items():
            starts[name] = total
            total += -(-torch.Size(sizes).numel() // align) * align
        flat = self._new(total, dtype=dtype)
        views = {
            name: flat[starts[name] : starts[name] + torch.Size(sizes).numel()].view(sizes)
            for name, sizes in self.model.parameter_shapes().items()
        }
        return views, flat

    def fill_random(self) -> None:
        """Positive numbers below 1 into everything, valid ids into tokens and targets: contents to time with."""
        for tensor in self.tensors:
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 1.0)
            else:
                tensor.random_(self.model.v)

    def btc(self, matrix: torch.Tensor) -> torch.Tensor:
        """(B*T, X) as (B, T, X)."""
        return matrix.view(self.B, self.T, -1)

    def heads(self, matrix: torch.Tensor) -> torch.Tensor:
        """(B*T, n*C) as (B, T, n*NH, HS)."""
        return matrix.view(self.B, self.T, -1, self.model.head_size)

    def q_k_v(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The three slices of a packed (B*T, 3*C) matrix, each (B, T, NH, HS)."""
        return self.heads(matrix).split(self.model.NH, dim=2)
