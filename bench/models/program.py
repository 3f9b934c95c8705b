"""A model's training step, whatever the model: which calls it makes, and over which memory.

    step_calls(model, B, T, "bf16")          {CallId: its shape and how often}: what needs a variant
    program(model, B, T, "bf16")             the calls themselves, bound to memory that is allocated here

A family of models writes its step down in bench/models/<family>.py, as a `Program` of that name.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Generic, TypeVar

import torch

from bench.machine.devices import Device
from bench.models import RECOMPUTE, CallId
from bench.models.calls import Call
from bench.models.memory import Memory
from reference import contract
from reference.models.model import Model

M = TypeVar("M", bound=Model)


class Program(ABC, Generic[M]):
    """One family's step. It allocates its activations in `memory` when it is made.

    cleared: gradients to which even the first micro-batch adds, so that they must be zero before a step.
    """

    cleared: Sequence[torch.Tensor] = ()

    def __init__(self, model: M, memory: Memory):
        self.model, self.memory = model, memory

    @staticmethod
    def recomputations(model: M) -> dict[str, int]:
        """{layer: calls a step}: outputs that backward can compute again from what is kept anyway."""
        return {}

    @abstractmethod
    def forward_backward(self, accumulate: bool) -> list[Call]:
        """One micro-batch, from `memory.tokens` and `.targets` to `.losses` and `.grads`.

        accumulate: False on the first micro-batch of a step (gradients are overwritten), True on the others.
        """

    def update(self) -> list[Call]:
        """The step's end: the norm of all gradients, then AdamW."""
        return [self.norm_call(), self.adamw_call(self.memory.masters)]

    def norm_call(self) -> Call:
        mem = self.memory
        return Call(CallId("global_norm", "", "forward"), (list(mem.grads.values()),), dict(norm=mem.norm))

    def adamw_call(self, masters: Mapping[str, torch.Tensor] | None) -> Call:
        """AdamW of the parameters that `masters` names, into these; of all where there are none."""
        mem = self.memory
        names = list(mem.params if masters is None else masters)
        _, shape = self.model.update_shapes()
        decays = dict(zip(mem.params, shape["weight_decays"], strict=True))
        shape["weight_decays"] = [decays[n] for n in names]
        constants = (shape[name] for name in contract.load("adamw").FORWARD.scalars)
        state = dict(params=mem.params, m=mem.m, v=mem.v, masters=masters)
        lists = {kind: None if views is None else [views[n] for n in names] for kind, views in state.items()}
        grads = [mem.grads[n] for n in names]
        inputs = (grads, mem.step, mem.lr, mem.grad_scale, *constants)
        return Call(CallId("adamw", "", "forward"), inputs, lists)


def program(
    model: Model,
    B: int,
    T: int,
    dtype: str,
    device: str | Device = "cpu",
    recompute: Collection[str] = (),
    masters: bool = True,
) -> Program:
    """The training step of a model with all its memory allocated."""
    return _family(model)(model, Memory(model, B, T, dtype, device, recompute, masters))


def step_calls(
    model: Model, B: int, T: int, dtype: str, recompute: Collection[str] = ()
) -> dict[CallId, contract.Call]:
    """Every call that needs a variant: its shape, with the dtype, and how often a step of one micro-batch makes it.

    recompute: of `recomputable`; each adds a forward of the shape RECOMPUTE.
    """
    found = {
        CallId(layer, name, phase): call
        for layer, shapes in model.calls(B, T).items()
        for name, call in shapes.items()
        if call.calls
        for phase in contract.phases_of(contract.load(layer))
    }
    for layer in recompute:
        (call,) = model.shapes(layer, B, T).values()
        calls = _family(model).recomputations(model)[layer]
        found[CallId(layer, RECOMPUTE, "forward")] = contract.Call(call.shape, calls)
    return {id: contract.Call({**call.shape, "dtype": dtype}, call.calls) for id, call in found.items()}


def recomputable(model: Model) -> list[str]:
    """Layers whose outputs backward can compute again, instead of every block keeping them."""
    return list(_family(model).recomputations(model))


def _family(model: Model) -> type[Program]:
    return importlib.import_module(f"bench.models.{model.family}").Program
