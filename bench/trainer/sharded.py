"""An optimizer whose state is spread over the ranks (ZeRO stage 1; Rajbhandari et al. 2020).

Each rank owns a part of every bucket of gradients (see reduction.py). It keeps m, v and masters of its parts alone,
takes their norm, updates their parameters with the same AdamW kernel, on slices of the tensors, and sends them to all.
A slice belongs to one tensor, so that its weight decay is that tensor's.

The norm is the root of the sum of squares of the parts' norms: rounded otherwise than a norm of all at once. But for
that, a sharded run trains as a replicated one does, bit for bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bench.checkpoints.state import State
from bench.cli import USAGE, CannotGoOn
from bench.models.calls import Call
from bench.models.memory import ALIGN, Memory
from bench.models.rounding import scratch_groups
from bench.models.step import Step, bind, make_workspace, workspace_bytes
from bench.trainer.peers import Peers
from bench.trainer.reduction import Bucket, Reduction
from reference import contract

FP32_ALIGN = ALIGN // 4  # elements


class Piece(NamedTuple):
    """Elements start … stop of a parameter, in the order in which they lie in memory."""

    name: str
    start: int
    stop: int

    def of(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return tensors[self.name].reshape(-1)[self.start : self.stop]


def pieces(memory: Memory, buckets: Sequence[Bucket], rank: int) -> list[Piece]:
    """What of which parameter lies in a rank's parts, in the order of parameters."""
    found = []
    for name, grad in memory.grads.items():
        first = grad.storage_offset() - memory.flat_grads.storage_offset()
        for part in sorted((b.part(rank) for b in buckets), key=lambda part: part.start):
            start, stop = max(part.start - first, 0), min(part.stop - first, grad.numel())
            if start < stop:
                found.append(Piece(name, start, stop))
    return found


class Sharded:
    """A rank's share of the optimizer's state, and the step's end on it. Takes the whole state out of `step`'s memory.

    Raises CannotGoOn where there are too few parameters for every rank to have some.
    """

    def __init__(self, peers: Peers, step: Step, reduction: Reduction):
        self.peers, self.step, self.reduction = peers, step, reduction
        mem = step.memory
        self.pieces = [pieces(mem, reduction.buckets, rank) for rank in range(peers.ranks)]
        if not all(self.pieces):
            message = f"{step.model.name} has too few parameters to be sharded over {peers.ranks} ranks"
            raise CannotGoOn(f"{message}: take --optimizer replicated", USAGE)
        self.own = self.pieces[peers.rank]
        kinds = ["m", "v"] + ["masters"] * (mem.masters is not None)
        _forget_whole(step)
        self.flats, self.state = {}, {}
        for kind in kinds:
            self.flats[kind], self.state[kind] = _flat(mem, self.own)
        self._take_over()
        step.bytes = sum(t.nbytes for t in mem.tensors) + step.workspace.nbytes

    # --- the step's end ---

    def _take_over(self) -> None:
        """The step's norm and update on this rank's pieces."""
        step, mem = self.step, self.step.memory
        norm, *_ = step.update_calls
        grads = [piece.of(mem.grads) for piece in self.own]
        calls = [Call(norm.id, (grads,), dict(norm=mem.norm)), *self._updates()]
        shapes = [{**step.shapes[c.id], **_shape(c)} for c in calls]
        modules = [step.modules[c.id] for c in calls]
        for call, shape, module in zip(calls, shapes, modules, strict=True):
            if hasattr(module, "prepare"):
                module.prepare(shape, call.id.phase)
        sizes = [workspace_bytes(c, m, s) for c, m, s in zip(calls, modules, shapes, strict=True)]
        if max(sizes) > len(step.workspace):
            self.workspace = make_workspace(sizes, mem.device.place)
            mem.tensors.append(self.workspace)
        else:
            self.workspace = step.workspace
        bounds = [bind(c, m, self.workspace, s) for c, m, s in zip(calls, modules, shapes, strict=True)]
        self.local_norm, *adamw = bounds
        step.update_calls = calls
        step.update_norm = self._norm, (), {}
        step.update_adamw = [*(step._with_rounding(bound) for bound in adamw), (self._share, (), {})]

    def _updates(self) -> list[Call]:
        """AdamW of the pieces; without masters, in scratch that they share (see bench.models.rounding)."""
        mem = self.step.memory
        if not self.step.rounds:
            return [self._update(self.own, self.state.get("masters"))]
        names = {f"{piece.name}[{piece.start}:{piece.stop}]": piece for piece in self.own}
        scratch, groups = scratch_groups({name: piece.of(mem.params) for name, piece in names.items()}, FP32_ALIGN)
        mem.tensors.append(scratch)
        return [
            self._update([names[n] for n in group], {names[n]: view for n, view in group.items()}) for group in groups
        ]

    def _update(self, some: list[Piece], masters: Mapping[Piece, torch.Tensor] | None) -> Call:
        step, mem = self.step, self.step.memory
        _, shape = step.model.update_shapes()
        decays = dict(zip(mem.params, shape["weight_decays"], strict=True))
        shape["weight_decays"] = [decays[piece.name] for piece in some]
        id = step.update_calls[1].id
        constants = (shape[name] for name in contract.load(id.layer).FORWARD.scalars)
        inputs = ([p.of(mem.grads) for p in some], mem.step, mem.lr, mem.grad_scale, *constants)
        outputs = dict(
            params=[p.of(mem.params) for p in some],
            m=[self.state["m"][p] for p in some],
            v=[self.state["v"][p] for p in some],
            masters=None if masters is None else [masters[p] for p in some],
        )
        return Call(id, inputs, outputs)

    def _norm(self) -> None:
        function, args, outputs = self.local_norm
        function(*args, **outputs)
        norm = self.step.memory.norm
        norm.copy_(torch.linalg.vector_norm(self.reduction.everyones(norm).double()))  # the square of 1e20 is no fp32

    def _share(self) -> None:
        self.reduction.share(self.step.memory.flat_params)

    def whole_gradients(self) -> None:
        self.reduction.share(self.step.memory.flat_grads)

    # --- what a checkpoint holds: whole tensors ---

    def start(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """No moments; masters are the parameters as they are given."""
        self.flats["m"].zero_()
        self.flats["v"].zero_()
        self._take("masters", parameters)

    def load(self, state: State) -> None:
        """This rank's pieces of a whole state."""
        self._take("m", state.m)
        self._take("v", state.v)
        self._take("masters", state.masters)

    def _take(self, kind: str, named: Mapping[str, torch.Tensor] | None) -> None:
        if named is not None and kind in self.state:
            for piece, view in self.state[kind].items():
                view.copy_(piece.of(named))

    def gather(self) -> dict[str, Any]:
        """m, v and masters whole, on the CPU of rank 0; nothing on the others. All ranks call it together."""
        found: dict[str, Any] = dict(m={}, v={}, masters=None)
        for kind, flat in self.flats.items():
            with self.peers.losing("gathering the optimizer's state"):
                if not self.peers.main:
                    dist.send(flat.cpu(), dst=0)
                    continue
                found[kind] = {name: torch.zeros(sizes) for name, sizes in self.step.model.parameter_shapes().items()}
                for rank, theirs in enumerate(self.pieces):
                    _put(found[kind], theirs, self._from(rank, flat, theirs))
        return found

    def _from(self, rank: int, own: torch.Tensor, theirs: list[Piece]) -> torch.Tensor:
        if rank == self.peers.rank:
            return own
        received = torch.empty(_places(theirs)[-1])
        dist.recv(received, src=rank)
        return received


def _shape(call: Call) -> dict[str, Any]:
    """What of a call's shape its pieces decide."""
    tensors = call.inputs[0]
    assert isinstance(tensors, list)
    found: dict[str, Any] = dict(tensors=[tuple(t.shape) for t in tensors])
    return {**found, "weight_decays": call.inputs[-1]} if "params" in call.outputs else found


def _places(some: list[Piece]) -> list[int]:
    """Where each of the pieces begins in a flat fp32 buffer, and its size."""
    found = [0]
    for piece in some:
        found.append(found[-1] + -(-(piece.stop - piece.start) // FP32_ALIGN) * FP32_ALIGN)
    return found


def _flat(mem: Memory, some: list[Piece]) -> tuple[torch.Tensor, dict[Piece, torch.Tensor]]:
    """An fp32 buffer with room for the pieces, and its views."""
    *starts, size = _places(some)
    flat = mem.new(size, dtype="fp32")
    return flat, {p: flat[at : at + p.stop - p.start] for p, at in zip(some, starts, strict=True)}


def _put(whole: dict[str, torch.Tensor], some: list[Piece], flat: torch.Tensor) -> None:
    for piece, at in zip(some, _places(some), strict=False):
        piece.of(whole).copy_(flat[at : at + piece.stop - piece.start])


def _forget_whole(step: Step) -> None:
    """Let go of the whole state's memory, and of the scratch that stands for masters; the step's own calls still hold
    it until they are replaced."""
    mem = step.memory
    held = [call.outputs[kind] for call in step.update_calls for kind in call.outputs if kind in ("m", "v", "masters")]
    gone = {t.untyped_storage().data_ptr() for some in held if isinstance(some, list) for t in some}
    mem.tensors = [t for t in mem.tensors if t.untyped_storage().data_ptr() not in gone]
    mem.m, mem.v, mem.masters = {}, {}, None
    mem.flat_m, mem.flat_v, mem.flat_masters = mem.flat_m.new_empty(0), mem.flat_v.new_empty(0), None
