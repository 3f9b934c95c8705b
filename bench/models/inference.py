"""A model that goes on with texts, whatever the model: which calls read the prompts and which make one token more.

    made = inference(model, Sizes(B=1, T=256, S=512, dtype="bf16"))
    made.shapes                  {CallId: its shape and how often}: what needs a variant
    made.prefill, made.decode    the calls themselves, bound to memory that is allocated here, the cache included

A family of models writes them down in bench/models/<family>.py, as an `Inference` of that name. Tensors are planned
once: weights in the working dtype, or in int8 with a scale for each group of a row (`Sizes.group`), the cache of keys
and values for S positions, and activations that all blocks share.

What is done between calls of layers (rows gathered, keys put into the cache, a bias added) is a `Move`: one in-place
operation of PyTorch, which allocates nothing, so that a step is one CUDA graph.
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from bench.cli import CannotGoOn
from bench.core.case import DTYPES
from bench.machine.devices import Device, open_device
from bench.models import CallId
from bench.models.calls import Call, Tensors
from reference import contract, q8_quantise
from reference.models.model import Model

PREFILL, DECODE = "prefill", "decode"
GEMV_ROWS = 8  # that the layer gemv takes; more sequences go through matmul
GROUP = 64  # elements of a row that share a scale, where nothing else is said (llama2.c's version 2 has it too)
PRODUCTS = ("matmul", "gemv", "q8_matmul", "attention", "decode_attention")  # whose operations MFU counts
META = "meta"  # PyTorch's device of tensors that have sizes and no memory

M = TypeVar("M", bound=Model)
Named = Mapping[str, torch.Tensor]
Quantised = tuple[torch.Tensor, torch.Tensor]  # int8 (N, K), fp32 scales (N, ceil(K / group))


@dataclass(frozen=True)
class Sizes:
    """B sequences, prompts of up to T tokens, S positions in all, and how tokens are drawn.

    group: 0, or elements of a row that share a scale: matrices are then int8, and so is what they are multiplied with.
    steps: tokens a sequence at most, the first one, which prefill makes, included.
    """

    B: int
    T: int
    S: int
    dtype: str
    group: int = 0
    steps: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Move:
    """An in-place operation between calls: `function(*inputs)` writes what it is to write, and allocates nothing."""

    name: str
    function: Callable[..., object]
    inputs: tuple[Any, ...]
    outputs: Mapping[str, torch.Tensor]  # by keyword


Item = Call | Move


class Inference(ABC, Generic[M]):
    """One family's calls, and all their memory.

    A subclass yields the calls in `_prefill` (from `tokens` to `branch` and `stream`, the last row of each sequence)
    and `_decode` (from `token` to the same). Both end with `_final`; the token is drawn here.
    """

    def __init__(self, model: M, sizes: Sizes, place: str):
        if not 1 <= sizes.T <= sizes.S <= model.max_t:
            raise ValueError(f"T={sizes.T} and S={sizes.S} do not fit into {model.max_t} positions of {model.name}")
        self.model, self.sizes, self.place = model, sizes, place
        self.tensors: list[torch.Tensor] = []  # all of them, as allocated
        self.shapes: dict[CallId, contract.Call] = {}
        self.weights: dict[str, torch.Tensor] = {}  # by name, in the working dtype; and of those …
        self.tables: set[str] = set()  # … what a step reads some rows of, …
        self.read_whole: set[str] = set()  # … and what it reads from end to end
        self.quantised: dict[str, Quantised] = {}
        self.caches: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each block: k and v, (B, NKV, S, HS)
        B, T = sizes.B, sizes.T
        self.tokens = self.new(B, T, dtype="int")  # the prompts, whatever behind the shorter ones
        self.last = self.new(B, dtype="int")  # row of each prompt's last token among all B*T
        self.start = self.new(B, dtype="int")  # where prompts begin: 0
        self.lengths = self.new(B, dtype="int")  # tokens in the cache
        self.token = self.new(B, dtype="int")  # drawn last, not in the cache yet
        self.drawn = self.new(sizes.steps, B, dtype="int")  # all of them …
        self.count = self.new(1, dtype="int")  # … so far
        self.uniform = self.new(sizes.steps, B, dtype="fp32")  # a number in [0, 1) for each of them
        self.u = self.new(B, dtype="fp32")
        self.logits = self.new(B, model.vp)  # type: ignore[attr-defined]
        self._scratch: dict[tuple[str, tuple[int, ...], str], torch.Tensor] = {}
        self.prefill: list[Item] = [*self._prefill(), *self._tail()]
        self.decode: list[Item] = [*self._decode(), *self._tail(), self._longer()]
        self._count(self.prefill, self.decode)

    # --- what a family says ---

    @abstractmethod
    def _prefill(self) -> Iterator[Item]: ...

    @abstractmethod
    def _decode(self) -> Iterator[Item]: ...

    @abstractmethod
    def _final(self) -> Iterator[Item]:
        """From the last rows of branch and stream to the logits."""

    # --- the end of both ---

    def _tail(self) -> Iterator[Item]:
        s, m = self.sizes, self.model
        yield from self._final()
        into = self.u.view(1, s.B)
        yield Move("draws", torch.index_select, (self.uniform, 0, self.count), dict(out=into))
        sizes = dict(B=s.B, V=m.v, VP=self.logits.shape[1], temperature=s.temperature, top_k=s.top_k, top_p=s.top_p)
        scalars = (m.v, s.temperature, s.top_k, s.top_p)
        yield self.call("sampling", "", sizes, (self.logits, self.u, *scalars), dict(token=self.token))
        yield Move("tokens", self.drawn.index_copy_, (0, self.count, self.token.view(1, s.B)), {})
        yield Move("count", self.count.add_, (1,), {})

    def _longer(self) -> Move:
        return Move("lengths", self.lengths.add_, (1,), {})

    def gather(self, rows: torch.Tensor, into: torch.Tensor) -> Move:
        """The last row of each sequence: of (B*T, X) into (B, X)."""
        return Move("last rows", torch.index_select, (rows, 0, self.last), dict(out=into))

    # --- memory ---

    def new(self, *sizes: int, dtype: str | None = None) -> torch.Tensor:
        """A tensor of zeros, of the working dtype unless another is named."""
        made = torch.zeros(sizes, dtype=DTYPES[dtype or self.sizes.dtype], device=self.place)
        self.tensors.append(made)
        return made

    def scratch(self, name: str, *sizes: int, dtype: str = "") -> torch.Tensor:
        """Memory that every block uses again: one for each name and size."""
        key = name, sizes, dtype
        if key not in self._scratch:
            self._scratch[key] = self.new(*sizes, dtype=dtype or None)
        return self._scratch[key]

    def weight(self, name: str) -> torch.Tensor:
        """A parameter that every step reads whole."""
        self.read_whole.add(name)
        return self._parameter(name)

    def table(self, name: str) -> torch.Tensor:
        """A parameter of which a step reads some rows."""
        self.tables.add(name)
        return self._parameter(name)

    def _parameter(self, name: str) -> torch.Tensor:
        if name not in self.weights:
            self.weights[name] = self.new(*self.model.parameter_shapes()[name])
        return self.weights[name]

    def _groups(self, name: str) -> Quantised:
        """A matrix in int8."""
        if name not in self.quantised:
            N, K = self.model.parameter_shapes()[name]
            groups = math.ceil(K / self.sizes.group)
            self.quantised[name] = self.new(N, K, dtype="int8"), self.new(N, groups, dtype="fp32")
        return self.quantised[name]

    def cache(self, block: int, heads: int, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a block: keys and values, (B, heads, S, head_size) each."""
        while len(self.caches) <= block:
            sizes = self.sizes.B, heads, self.sizes.S, head_size
            self.caches.append((self.new(*sizes), self.new(*sizes)))
        return self.caches[block]

    def keep(self, block: int, k: torch.Tensor, v: torch.Tensor) -> Iterator[Move]:
        """Keys and values of the prompts, (B, T, NKV, HS) slices, into a block's cache."""
        for name, new, cache in zip(("keys", "values"), (k, v), self.cache(block, *k.shape[2:]), strict=True):
            yield Move(name, cache[:, :, : new.shape[1]].copy_, (new.transpose(1, 2),), {})

    # --- calls ---

    def call(
        self,
        layer: str,
        name: str,
        shape: Mapping[str, Any],
        inputs: tuple[object, ...],
        outputs: Mapping[str, Tensors],
    ) -> Call:
        """A call of forward, of that shape; all calls of one name have the same."""
        id = CallId(layer, name, "forward")
        whole = {**shape, "dtype": self.sizes.dtype}
        if self.shapes.setdefault(id, contract.Call(whole, 0)).shape != whole:
            raise ValueError(f"{id} is called with two shapes")
        return Call(id, inputs, outputs)

    def project(self, stage: str, name: str, x: torch.Tensor, weight: str, out: torch.Tensor) -> Iterator[Item]:
        """out (rows, N) = x (rows, K) @ weight^T: by gemv, by matmul where rows are many, or in int8."""
        rows, (N, K) = len(x), self.model.parameter_shapes()[weight]
        place = f"{stage}-{name}" if stage else name
        if G := self.sizes.group:
            values, scales = self._groups(weight)
            groups = scales.shape[1]
            q = self.scratch("q", rows * self._widest(), dtype="int8")[: rows * K].view(rows, K)
            q_scales = self.scratch("q scales", rows, groups, dtype="fp32")
            sizes = dict(M=rows, K=K, G=G, KG=groups)
            yield self.call("q8_quantise", place, sizes, (x, G), dict(q=q, scales=q_scales))
            multiplied = (q, q_scales, values, scales, G)
            yield self.call("q8_matmul", place, dict(sizes, N=N), multiplied, dict(out=out))
        elif rows <= GEMV_ROWS and stage != PREFILL:
            inputs = (x, self.weight(weight))
            yield self.call("gemv", place, dict(M=rows, N=N, K=K), inputs, dict(out=out))
        else:
            yield self.matmul(place, x, weight, None, "none", out)

    def matmul(self, place: str, x, weight: str, bias: str | None, epilogue: str, out, pre_gelu=None) -> Call:
        """The training step's linear layer."""
        N, K = self.model.parameter_shapes()[weight]
        shape = dict(M=len(x), N=N, K=K, epilogue=epilogue, dgelu=False)
        inputs = (x, self.weight(weight), self.weight(bias) if bias else None, epilogue)
        return self.call("matmul", place, shape, inputs, dict(out=out, pre_gelu=pre_gelu))

    def _widest(self) -> int:
        """The longest row that a matrix is multiplied with."""
        return max(sizes[1] for sizes in self.model.parameter_shapes().values() if len(sizes) == 2)

    def _count(self, *lists: Iterable[Item]) -> None:
        """How often each call is made, in prefill and in one step."""
        made: dict[CallId, int] = {}
        for items in lists:
            for item in items:
                if isinstance(item, Call):
                    made[item.id] = made.get(item.id, 0) + 1
        self.shapes = {id: contract.Call(call.shape, made[id]) for id, call in self.shapes.items()}

    # --- contents ---

    def load(self, weights: Named, quantised: Mapping[str, Quantised] | None = None) -> None:
        """Take weights by name, any float dtype, all of `model.parameter_shapes()`.

        quantised: int8 matrices of this group, as a file may have them, which are taken as they are.
        """
        if weights.keys() | (quantised or {}).keys() != self.model.parameter_shapes().keys():
            wrong = sorted(weights.keys() ^ self.model.parameter_shapes().keys())
            raise ValueError(f"weights differ by {wrong}")
        for name, into in self.weights.items():
            into.copy_(weights[name] if name in weights else dequantised(*(quantised or {})[name], self.sizes.group))
        for name, (values, scales) in self.quantised.items():
            found = (quantised or {}).get(name) or quantised_rows(weights[name].float(), self.sizes.group)
            values.copy_(found[0])
            scales.copy_(found[1])

    def fill_random(self) -> None:
        """Positive numbers below 1 into everything, valid ids and lengths: contents to time with. Caches are full."""
        for tensor in self.tensors:
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 1.0)
            elif tensor.dtype == torch.int8:
                tensor.random_(-q8_quantise.MOST, q8_quantise.MOST + 1)
            else:
                tensor.random_(self.model.v)
        self.uniform.uniform_(0, 1)
        self.u.uniform_(0, 0.99)
        self.lengths.fill_(self.sizes.S - 1)
        self.start.zero_()
        self.last.copy_(torch.arange(1, self.sizes.B + 1) * self.sizes.T - 1)
        self.count.zero_()
        self.constants()

    def constants(self) -> None:
        """Write what depends on nothing but sizes (tables of angles)."""

    # --- figures ---

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    @property
    def cache_bytes(self) -> int:
        return sum(t.nbytes for pair in self.caches for t in pair)

    @property
    def weight_bytes(self) -> int:
        """Of all weights, as they are kept."""
        return sum(t.nbytes for t in self.weights.values()) + sum(
            t.nbytes for pair in self.quantised.values() for t in pair
        )

    @property
    def weight_bytes_read(self) -> int:
        """By one decode step: every weight once, of tables that are nothing else a row a sequence."""
        rows = [self.weights[name][0].nbytes * self.sizes.B for name in self.tables - self.read_whole]
        whole = [self.weights[name].nbytes for name in self.read_whole]
        return sum(rows) + sum(whole) + sum(t.nbytes for pair in self.quantised.values() for t in pair)

    def cache_bytes_read(self, lengths: Iterable[int]) -> int:
        """By one decode step that sees so many keys of each sequence."""
        key = sum(t[0, :, 0].nbytes for pair in self.caches for t in pair)
        return sum(lengths) * key

    def prefill_flops(self) -> int:
        """Of a prefill, by the contracts: products alone, visible pairs of attention, the head at the last token."""
        return self._flops(self.prefill)

    def _flops(self, items: Iterable[Item]) -> int:
        ids = [item.id for item in items if isinstance(item, Call) and item.id.layer in PRODUCTS]
        return sum(contract.flops(contract.load(id.layer), self.shapes[id].shape, id.phase) for id in ids)


def inference(model: Model, sizes: Sizes, device: str | Device = "cpu") -> Inference:
    """A model's inference with all its memory allocated. With META there is none: for shapes and sizes. CannotGoOn for
    a family that has none."""
    made = open_device(device) if isinstance(device, str) and device != META else device
    place = made if isinstance(made, str) else made.place
    family = importlib.import_module(f"bench.models.{model.family}")
    if not hasattr(family, "Inference"):
        raise CannotGoOn(f"{model.name} cannot generate: bench/models/{model.family}.py has no Inference")
    return family.Inference(model, sizes, place)


# --- groups of int8 ---


def quantised_rows(matrix: torch.Tensor, group: int) -> Quantised:
    """int8 values and fp32 scales of an fp32 matrix (N, K), as the layer q8_quantise makes them: groups along rows, the
    last of a row may be short."""
    found = q8_quantise.forward(matrix, group)
    return found["q"], found["scales"]


def dequantised(values: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """fp32 (N, K) of int8 values and the scales of their groups."""
    return values.float() * q8_quantise.spread(scales, group, values.shape[1])
