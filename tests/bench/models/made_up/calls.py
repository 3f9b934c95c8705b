"""The made-up model as a list of calls, with its activations."""

from collections.abc import Iterator

import torch

from bench.models import CallId, program
from bench.models.calls import Call
from bench.models.memory import Memory
from tests.bench.models.made_up.reference import EPS, MadeUp


class Program(program.Program[MadeUp]):
    def __init__(self, model: MadeUp, memory: Memory):
        super().__init__(model, memory)
        new, B, T, C = memory.new, memory.B, memory.T, model.C
        M = B * T
        self.stream = [new(M, C) for _ in range(model.L + 1)]
        self.up = [new(M, 2 * C) for _ in range(model.L)]
        self.gelu = [new(M, 2 * C) for _ in range(model.L)]
        self.mean, self.rstd, self.lse = (new(B, T, dtype="fp32") for _ in range(3))
        self.norm, self.branch = new(M, C), new(M, C)
        self.logits, self.dlogits = new(M, model.v), new(M, model.v)
        self.dstream, self.dwide = [new(M, C), new(M, C)], [new(M, 2 * C), new(M, 2 * C)]

    def forward_backward(self, accumulate: bool) -> list[Call]:
        return [*self._forward(), *self._backward(accumulate)]

    def _matmul(self, name: str, parameter: str, x: torch.Tensor, out: torch.Tensor) -> Call:
        P = self.memory.params
        bias = P.get(f"{parameter}.bias")
        inputs = (x, P[f"{parameter}.weight"], bias, "none" if bias is None else "bias")
        return Call(CallId("matmul", name, "forward"), inputs, dict(out=out, pre_gelu=None))

    def _dmatmul(self, name: str, parameter: str, dout: torch.Tensor, x: torch.Tensor, dx, accumulate: bool) -> Call:
        mem, weight = self.memory, f"{parameter}.weight"
        outputs = dict(dx=dx, dweight=mem.grads[weight], dbias=mem.grads.get(f"{parameter}.bias"))
        return Call(CallId("matmul", name, "backward"), (dout, x, mem.params[weight], None, accumulate), outputs)

    def _add(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Call:
        return Call(CallId("residual", "", "forward"), (a.view(-1), b.view(-1)), dict(out=out.view(-1)))

    def _forward(self) -> Iterator[Call]:
        mem, P, btc, v = self.memory, self.memory.params, self.memory.btc, self.model.v
        inputs: tuple = (mem.tokens, P["wte"], P["wpe"][: mem.T])
        yield Call(CallId("embedding", "", "forward"), inputs, dict(out=btc(self.stream[0])))
        for i in range(self.model.L):
            yield self._matmul("up", f"h{i}.up", self.stream[i], self.up[i])
            yield Call(CallId("gelu", "", "forward"), (self.up[i].view(-1),), dict(out=self.gelu[i].view(-1)))
            yield self._matmul("down", f"h{i}.down", self.gelu[i], self.branch)
            yield self._add(self.stream[i], self.branch, self.stream[i + 1])
        inputs = (btc(self.stream[-1]), P["norm.weight"], P["norm.bias"], EPS)
        outputs = dict(out=btc(self.norm), mean=self.mean, rstd=self.rstd)
        yield Call(CallId("layernorm", "", "forward"), inputs, outputs)
        yield self._matmul("head", "head", self.norm, self.logits)
        outputs = dict(losses=mem.losses, lse=self.lse)
        yield Call(CallId("cross_entropy", "", "forward"), (btc(self.logits), mem.targets, v), outputs)

    def _backward(self, accumulate: bool) -> Iterator[Call]:
        mem, G, btc, v = self.memory, self.memory.grads, self.memory.btc, self.model.v
        stream, other = self.dstream
        dgelu, dup = self.dwide
        inputs: tuple = (mem.dlosses, btc(self.logits), mem.targets, self.lse, v)
        yield Call(CallId("cross_entropy", "", "backward"), inputs, dict(dlogits=btc(self.dlogits)))
        yield self._dmatmul("head", "head", self.dlogits, self.norm, self.branch, accumulate)
        yield Call(
            CallId("layernorm", "", "backward"),
            (btc(self.branch), None, btc(self.stream[-1]), mem.params["norm.weight"], self.mean, self.rstd, accumulate),
            dict(dx=btc(stream), dweight=G["norm.weight"], dbias=G["norm.bias"]),
        )
        for i in reversed(range(self.model.L)):
            yield self._dmatmul("down", f"h{i}.down", stream, self.gelu[i], dgelu, accumulate)
            inputs = (dgelu.view(-1), self.up[i].view(-1))
            yield Call(CallId("gelu", "", "backward"), inputs, dict(dx=dup.view(-1)))
            yield self._dmatmul("up", f"h{i}.up", dup, self.stream[i], self.branch, accumulate)
            yield self._add(stream, self.branch, other)
            stream, other = other, stream
        inputs = (btc(stream), mem.tokens, v, accumulate)
        yield Call(CallId("embedding", "", "backward"), inputs, dict(dwte=G["wte"], dwpe=G["wpe"][: mem.T]))
