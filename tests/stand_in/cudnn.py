"""cuDNN without a GPU: the graph that was described is read back, and computed in fp64 on the tensors' own memory.

    with cudnn_graph.use(StandIn(double())): …         a graph of a small double of cudnn-frontend, set and get alone
    with cudnn_graph.use(StandIn(the module cudnn)): … the real one's, which validates and infers without a driver

What a node may have is listed: a parameter or a tensor that is not interpreted is an error, not a shrug. It proves
logic; not what a card supports, nor accuracy, nor speed.
"""

import ctypes
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from kernels import Unavailable

DTYPE = {"BFLOAT16": torch.bfloat16, "HALF": torch.float16, "FLOAT": torch.float32}
PARAMETERS = {
    "SDPA": {"generate_stats", "attn_scale", "diagonal_alignment", "diagonal_band_right_bound"},
    "SDPA_BWD": {"attn_scale", "diagonal_alignment", "diagonal_band_right_bound", "use_deterministic_algorithm"},
}
INPUTS = {"SDPA": ("q", "k", "v"), "SDPA_BWD": ("q", "k", "v", "o", "dO", "stats")}
OUTPUTS = {"SDPA": ("O", "Stats"), "SDPA_BWD": ("dQ", "dK", "dV")}
WORKSPACE = 1 << 12  # bytes, filled with NaN


# --- a double of the frontend ---


class DataType(enum.Enum):
    FLOAT, HALF, BFLOAT16 = 11, 22, 33


class Alignment(enum.Enum):
    BOTTOM_RIGHT, TOP_LEFT = 5, 6


class NodeType(enum.Enum):
    SDPA_BWD, SDPA = 7, 8


@dataclass
class Tensor:
    name: str = ""
    dim: list[int] = field(default_factory=list)
    stride: list[int] = field(default_factory=list)
    data_type: Any = None
    uid: int = 0
    is_virtual: bool = False

    def _set(self, **values: Any) -> "Tensor":
        self.__dict__.update(values)
        return self

    def set_output(self, value: bool) -> "Tensor":
        return self._set(is_virtual=not value)

    def set_dim(self, value: list[int]) -> "Tensor":
        return self._set(dim=list(value))

    def set_stride(self, value: list[int]) -> "Tensor":
        return self._set(stride=list(value))

    def set_data_type(self, value: DataType) -> "Tensor":
        return self._set(data_type=value)

    def set_uid(self, value: int) -> "Tensor":
        return self._set(uid=value)


class Graph:
    """cudnn.pygraph, as far as it is used: what was set can be read."""

    def __init__(self, handle: Any, io_data_type: Any, intermediate_data_type: Any, compute_data_type: Any):
        if (intermediate_data_type, compute_data_type) != (DataType.FLOAT, DataType.FLOAT):
            raise ValueError("sums of less than fp32")
        self.io, self.nodes = io_data_type, list[Any]()

    def tensor(self, name: str, dim: list[int], stride: list[int], data_type: Any, uid: int) -> Tensor:
        return Tensor(name, list(dim), list(stride), data_type, uid)

    def sdpa(self, name: str, q: Tensor, k: Tensor, v: Tensor, **params: Any) -> list[Tensor]:
        return self._node("SDPA", name, dict(q=q, k=k, v=v), params)

    def sdpa_backward(self, name: str, q, k, v, o, dO, stats, **params: Any) -> list[Tensor]:
        return self._node("SDPA_BWD", name, dict(q=q, k=k, v=v, o=o, dO=dO, stats=stats), params)

    def _node(self, kind: str, name: str, inputs: dict[str, Tensor], params: dict[str, Any]) -> list[Tensor]:
        outputs = {port: Tensor(f"{name}::{port}", is_virtual=True) for port in OUTPUTS[kind]}
        node = SimpleNamespace(name=name, node_type=NodeType[kind], inputs=inputs, outputs=outputs, params=params)
        self.nodes.append(node)
        return list(outputs.values())

    def validate(self) -> None:
        there = [t for node in self.nodes for t in (*node.inputs.values(), *node.outputs.values())]
        for t in there:
            if len(t.dim) != 4 or len(t.stride) != 4 or t.data_type is None:
                raise ValueError(f"{t.name} has no sizes, strides or type")
        if len({t.uid for t in there}) != len(there):
            raise ValueError("two tensors have one number")

    def build_operation_graph(self) -> None:
        pass


def double() -> SimpleNamespace:
    return SimpleNamespace(data_type=DataType, diagonal_alignment=Alignment, pygraph=Graph)


# --- the engine ---


@dataclass(eq=False)  # plans are kept by who made them
class StandIn:
    """What needs a driver, over a graph of the real frontend or of its double.

    memory: (begin, end) of what a call may touch; none: anything.
    """

    frontend: ModuleType | SimpleNamespace
    memory: list[tuple[int, int]] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)  # what earlier calls had, so that later ones are elsewhere
    on_cpu = True
    built: list[Any] = field(default_factory=list)
    executed: int = 0
    plant: Callable[[Any], object] | None = None  # a mistake, into a node that was described
    swap: tuple[int, int] | None = None  # another one: two tensors' numbers, whose addresses are exchanged

    def handle(self, device: int) -> None:
        return None

    def build(self, graph: Any) -> int:
        """Validated as the library does it, and by what it says of sizes."""
        if self.plant:
            self.plant(graph.nodes[0])
        graph.validate()
        graph.build_operation_graph()
        (node,) = graph.nodes
        kind = node.node_type.name
        if unknown := set(node.params) - PARAMETERS[kind]:
            raise ValueError(f"parameters that are not interpreted: {unknown}")
        if (set(node.inputs), set(node.outputs)) != (set(INPUTS[kind]), set(OUTPUTS[kind])):
            raise ValueError(f"not the tensors of {kind}: {set(node.inputs)}, {set(node.outputs)}")
        if any(t.is_virtual for t in node.outputs.values()):
            raise ValueError("an output that is not written")
        _, heads, T, HS = node.inputs["q"].dim
        if HS % 8 or HS > 256 or heads % node.inputs["k"].dim[1]:
            raise Unavailable("a head that cuDNN does not take")
        if kind == "SDPA_BWD" and T == 1:
            raise Unavailable("s_q = s_kv = 1 is not supported")
        for name, t in (*node.inputs.items(), *node.outputs.items()):
            wide = name in ("Stats", "stats")
            if (DTYPE[t.data_type.name] == torch.float32) != wide or t.stride[-1] != 1:
                raise ValueError(f"{name}: {t.data_type}, {t.stride}")
        self.built.append(graph)
        return WORKSPACE

    def name(self, graph: Any) -> str:
        return "stand-in"

    def execute(self, graph: Any, addresses: dict[int, int], workspace: int, device: int) -> None:
        self.executed += 1
        if workspace % 256 or any(address % 16 for address in addresses.values()):
            raise ValueError("not aligned")
        with _disable_current_modes():
            self._touch(workspace, WORKSPACE)
            ctypes.memset(workspace, 0xFF, WORKSPACE)
            if self.swap:
                a, b = self.swap
                addresses = addresses | {a: addresses[b], b: addresses[a]}
            self._compute(graph.nodes[0], addresses)

    def _compute(self, node: Any, addresses: dict[int, int]) -> None:
        ports = {**node.inputs, **node.outputs}
        t = {name: self._tensor(addresses[tensor.uid], tensor) for name, tensor in ports.items()}
        q, k, v = (t[name].double() for name in ("q", "k", "v"))
        group, scale = q.shape[1] // k.shape[1], node.params.get("attn_scale", 1.0)
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = q @ k.mT * scale
        if (bound := node.params.get("diagonal_band_right_bound")) is not None:
            rows, columns = scores.shape[-2:]
            if node.params.get("diagonal_alignment", TOP_LEFT).name != TOP_LEFT.name:
                bound += columns - rows
            allowed = torch.ones(rows, columns, dtype=torch.bool).tril(bound)
            scores = scores.masked_fill(~allowed, -torch.inf)
        if node.node_type.name == "SDPA":
            lse = scores.logsumexp(-1, keepdim=True)
            t["O"].copy_((scores - lse).exp() @ v)
            t["Stats"].copy_(lse)
            return
        do = t["dO"].double()
        p = (scores - t["stats"].double()).exp()
        ds = p * (do @ v.mT - (do * t["o"].double()).sum(-1, keepdim=True)) * scale
        for name, grad in (("dQ", ds @ k), ("dK", _together(ds.mT @ q, group)), ("dV", _together(p.mT @ do, group))):
            t[name].copy_(grad)

    def _touch(self, address: int, size: int) -> None:
        if self.memory and not any(begin <= address and address + size <= end for begin, end in self.memory):
            raise ValueError(f"{size} bytes that are no part of the call's tensors")

    def _tensor(self, address: int, tensor: Any) -> torch.Tensor:
        """A tensor of the graph where it lies."""
        dtype = DTYPE[tensor.data_type.name]
        count = 1 + sum((d - 1) * s for d, s in zip(tensor.dim, tensor.stride, strict=True))
        self._touch(address, count * dtype.itemsize)
        raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        return torch.frombuffer(raw, dtype=dtype, count=count).as_strided(tensor.dim, tensor.stride)


TOP_LEFT = Alignment.TOP_LEFT


def _together(x: torch.Tensor, group: int) -> torch.Tensor:
    """Heads that share a key, summed."""
    return x.unflatten(1, (-1, group)).sum(2)
