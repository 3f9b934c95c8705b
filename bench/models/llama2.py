"""Llama 2 as lists of calls, with its activations: a training step; prompts read and texts gone on with."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.models import RECOMPUTE, CallId, cached, inference, program
from bench.models.calls import Call
from bench.models.inference import DECODE, PREFILL, Item
from bench.models.memory import Memory
from reference import rope
from reference.models.llama2 import STYLE, Llama2, rotated
from reference.models.plain import Plain


@dataclass
class Activations:
    """What one block's forward leaves for its backward. Matrices are (B*T, …); `btc` views are (B, T, C)."""

    norm1: torch.Tensor  # x of qkv
    qkv: torch.Tensor  # queries and keys turned
    attention: torch.Tensor
    lse: torch.Tensor
    residual1: torch.Tensor  # the stream after attention
    norm2: torch.Tensor
    rstd2: torch.Tensor
    gate_up: torch.Tensor
    hidden: torch.Tensor  # silu(gate) * up
    residual2: torch.Tensor  # the stream after the MLP
    rstd: torch.Tensor  # statistic of the norm that follows the MLP: the next block's norm1, or the last one


class Program(program.Program[Llama2]):
    """The fused step: residual adds in the norms, the gate and up projections in one matmul, the loss with its
    gradient. The queries and keys are turned where the qkv matmul left them."""

    def __init__(self, model: Llama2, memory: Memory):
        super().__init__(model, memory)
        mem, B, T = memory, memory.B, memory.T
        M, C, H = B * T, model.C, model.H
        self.start, self.cos, self.sin = self._positions()
        self.embedded = mem.new(B, T, C)
        self.rstd = self._statistic()  # of block 0's norm1
        norms = mem.kept("rmsnorm", 2 * model.L, M, C)
        hidden = mem.kept("swiglu", model.L, M, H)
        if "rmsnorm" in mem.recompute:  # backward reads the statistic that forward saved, not this
            self.rstd_again = self._statistic()
            mem.saved_bytes -= self.rstd_again.nbytes
        self.blocks = [self._block(norms[2 * i], norms[2 * i + 1], hidden[i]) for i in range(model.L)]
        self.final = mem.new(M, C)  # the last norm's output
        self.logits = mem.new(M, model.vp)  # becomes dlogits

        # Scratch, used again by every block: a branch's output in forward; in backward the gradient of the
        # stream (two: read one, write the other), of a C-wide branch, of the hidden channels, and of the widest
        # activations, which are those of gate and up, or of qkv.
        self.branch = mem.new(M, C)
        self.streams = [mem.new(M, C), mem.new(M, C)]
        self.dbranch = mem.new(M, C)
        self.dhidden = mem.new(M, H)
        wide = mem.new(M * max(2 * H, model.qkv_width))
        self.dgate_up = wide[: M * 2 * H].view(M, 2 * H)
        self.dqkv = wide[: M * model.qkv_width].view(M, model.qkv_width)

    def _positions(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where each sequence starts (at 0), and the cosine and sine of every position's angles."""
        mem, model = self.memory, self.model
        start = mem.constant(torch.zeros(mem.B, dtype=torch.int64))
        cos, sin = rope.table(model.max_t, model.head_size, model.theta)
        return start, mem.constant(cos), mem.constant(sin)

    def _statistic(self) -> torch.Tensor:
        return self.memory.new(self.memory.B, self.memory.T, dtype="fp32")

    def _block(self, norm1: torch.Tensor, norm2: torch.Tensor, hidden: torch.Tensor) -> Activations:
        mem, model = self.memory, self.model
        M, C = mem.B * mem.T, model.C
        return Activations(
            norm1=norm1,
            qkv=mem.new(M, model.qkv_width),
            attention=mem.new(M, C),
            lse=mem.new(mem.B, model.NH, mem.T, dtype="fp32"),
            residual1=mem.new(M, C),
            norm2=norm2,
            rstd2=self._statistic(),
            gate_up=mem.new(M, 2 * model.H),
            hidden=hidden,
            residual2=mem.new(M, C),
            rstd=self._statistic(),
        )

    @staticmethod
    def recomputations(model: Llama2) -> dict[str, int]:
        return {"swiglu": model.L, "rmsnorm": 2 * model.L}

    def heads(self, matrix: torch.Tensor) -> torch.Tensor:
        """(B*T, n*HS) as (B, T, n, HS)."""
        return matrix.view(self.memory.B, self.memory.T, -1, self.model.head_size)

    def q_k_v(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The three slices of a packed (B*T, (NH + 2 NKV) HS) matrix: (B, T, NH, HS) and twice (B, T, NKV, HS)."""
        NH, NKV = self.model.NH, self.model.NKV
        return self.heads(matrix).split((NH, NKV, NKV), dim=2)

    def forward_backward(self, accumulate: bool) -> list[Call]:
        return [*self._forward(), *self._backward(accumulate)]

    def _rope(self, phase: str, matrix: torch.Tensor) -> Call:
        """Turn the queries and keys of a packed matrix, or their gradients back, where they are."""
        turned = self.model.NH + self.model.NKV
        name = "qkv" if phase == "forward" else "dqkv"
        inputs = (self.start, self.cos, self.sin, turned, STYLE)
        return Call(CallId("rope", "", phase), inputs, {name: self.heads(matrix)})

    def _swiglu(self, shape: str, a: Activations) -> Call:
        return Call(CallId("swiglu", shape, "forward"), (a.gate_up,), dict(out=a.hidden))

    @property
    def head(self) -> str:
        """The parameter that the head multiplies by."""
        return "wte" if self.model.tied else "head.weight"

    def _forward(self) -> Iterator[Call]:
        mem, P, btc, L = self.memory, self.memory.params, self.memory.btc, self.model.L

        def matmul(name: str, x, parameter: str, out) -> Call:
            inputs, outputs = (x, P[parameter], None, "none"), dict(out=out, pre_gelu=None)
            return Call(CallId("matmul", name, "forward"), inputs, outputs)

        def residual_rmsnorm(name, residual, norm, residual_out, out, rstd) -> Call:
            inputs = (btc(self.branch), btc(residual), P[f"{norm}.weight"], self.model.eps)
            outputs = dict(residual_out=btc(residual_out), out=btc(out), rstd=rstd)
            return Call(CallId("residual_rmsnorm", name, "forward"), inputs, outputs)

        yield Call(CallId("embedding", "", "forward"), (mem.tokens, P["wte"], None), dict(out=self.embedded))
        stream = self.embedded.view(mem.B * mem.T, -1)
        outputs = dict(out=btc(self.blocks[0].norm1), rstd=self.rstd)
        yield Call(CallId("rmsnorm", "", "forward"), (self.embedded, P["h0.norm1.weight"], self.model.eps), outputs)
        for i, a in enumerate(self.blocks):
            yield matmul("qkv", a.norm1, f"h{i}.qkv.weight", a.qkv)
            yield self._rope("forward", a.qkv)
            outputs = dict(out=self.heads(a.attention), lse=a.lse)
            yield Call(CallId("attention", "", "forward"), (*self.q_k_v(a.qkv), True), outputs)
            yield matmul("attproj", a.attention, f"h{i}.attproj.weight", self.branch)
            yield residual_rmsnorm("block", stream, f"h{i}.norm2", a.residual1, a.norm2, a.rstd2)
            yield matmul("gate_up", a.norm2, f"h{i}.gate_up.weight", a.gate_up)
            yield self._swiglu("", a)
            yield matmul("down", a.hidden, f"h{i}.down.weight", self.branch)
            last = ("final", "norm", self.final)
            name, norm, out = ("block", f"h{i + 1}.norm1", self.blocks[i + 1].norm1) if i + 1 < L else last
            yield residual_rmsnorm(name, a.residual1, norm, a.residual2, out, a.rstd)
            stream = a.residual2
        yield matmul("lm_head", self.final, self.head, self.logits)
        outputs = dict(logits=btc(self.logits), losses=mem.losses)
        yield Call(CallId("fused_classifier", "", "forward"), (mem.targets, mem.dlosses, self.model.v), outputs)

    def _backward(self, accumulate: bool) -> Iterator[Call]:
        mem, P, G, btc = self.memory, self.memory.params, self.memory.grads, self.memory.btc
        stream, other = self.streams  # gradient of the residual stream: the one that holds it now, the next to write

        def matmul(name: str, dout, x, parameter, dx) -> Call:
            inputs = (dout, x, P[parameter], None, accumulate)
            return Call(CallId("matmul", name, "backward"), inputs, dict(dx=dx, dweight=G[parameter], dbias=None))

        def residual_rmsnorm(name, dresidual_out, residual_out, norm, rstd, dresidual) -> Call:
            dstream = None if dresidual_out is None else btc(dresidual_out)
            inputs = (btc(self.dbranch), dstream, btc(residual_out), P[f"{norm}.weight"], rstd, accumulate)
            outputs = dict(dresidual=btc(dresidual), dweight=G[f"{norm}.weight"])
            return Call(CallId("residual_rmsnorm", name, "backward"), inputs, outputs)

        # Of a tied head this gradient goes into dwte first, the embedding's is added at the end.
        yield matmul("lm_head", self.logits, self.final, self.head, self.dbranch)
        for i in reversed(range(self.model.L)):
            a = self.blocks[i]
            if i + 1 == self.model.L:
                yield residual_rmsnorm("final", None, a.residual2, "norm", a.rstd, stream)
            else:
                yield residual_rmsnorm("block", stream, a.residual2, f"h{i + 1}.norm1", a.rstd, other)
                stream, other = other, stream
            # A residual add hands its gradient to both sides, so `stream` is the gradient of down's output too.
            if "swiglu" in mem.recompute:
                yield self._swiglu(RECOMPUTE, a)
            yield matmul("down", stream, a.hidden, f"h{i}.down.weight", self.dhidden)
            yield Call(CallId("swiglu", "", "backward"), (self.dhidden, a.gate_up), dict(dx=self.dgate_up))
            yield from self._norm_again(a.residual1, f"h{i}.norm2", a.norm2)
            yield matmul("gate_up", self.dgate_up, a.norm2, f"h{i}.gate_up.weight", self.dbranch)
            yield residual_rmsnorm("block", stream, a.residual1, f"h{i}.norm2", a.rstd2, other)
            stream, other = other, stream
            yield matmul("attproj", stream, a.attention, f"h{i}.attproj.weight", self.dbranch)
            inputs = (self.heads(self.dbranch), *self.q_k_v(a.qkv), self.heads(a.attention), a.lse, True)
            outputs = dict(zip(("dq", "dk", "dv"), self.q_k_v(self.dqkv), strict=True))
            yield Call(CallId("attention", "", "backward"), inputs, outputs)
            yield self._rope("backward", self.dqkv)
            into_block = self.blocks[i - 1].residual2 if i else self.embedded
            yield from self._norm_again(into_block, f"h{i}.norm1", a.norm1)
            yield matmul("qkv", self.dqkv, a.norm1, f"h{i}.qkv.weight", self.dbranch)
        yield Call(
            CallId("rmsnorm", "", "backward"),
            (btc(self.dbranch), btc(stream), self.embedded, P["h0.norm1.weight"], self.rstd, accumulate),
            dict(dx=btc(other), dweight=G["h0.norm1.weight"]),
        )
        # With a tied head accumulate=True on the first micro-batch as well: dwte holds the head's part.
        inputs = (btc(other), mem.tokens, self.model.vp, accumulate or self.model.tied)
        yield Call(CallId("embedding", "", "backward"), inputs, dict(dwte=G["wte"], dwpe=None))

    def _norm_again(self, x: torch.Tensor, norm: str, out: torch.Tensor) -> Iterator[Call]:
        mem = self.memory
        if "rmsnorm" in mem.recompute:
            inputs = (mem.btc(x), mem.params[f"{norm}.weight"], self.model.eps)
            yield Call(CallId("rmsnorm", RECOMPUTE, "forward"), inputs, dict(out=mem.btc(out), rstd=self.rstd_again))


class Inference(inference.Inference[Llama2]):
    """Prefill through the training step's layers, decode through gemv and decode_attention; queries and keys are turned
    by their positions before they are kept."""

    def _prefill(self) -> Iterator[Item]:
        s, m = self.sizes, self.model
        rows, NH, NKV = s.B * s.T, m.NH, m.NKV
        self.cos, self.sin = (self.new(m.max_t, m.head_size // 2, dtype="fp32") for _ in range(2))
        self.branch, self.stream = self.new(s.B, m.C), self.new(s.B, m.C)  # of the last token of each sequence
        stream, other, branch, norm, out = (self.scratch(n, rows, m.C) for n in ("a", "b", "branch", "norm", "att"))
        packed = self.scratch("qkv", rows, m.qkv_width)
        gate_up, hidden = self.scratch("gate_up", rows, 2 * m.H), self.scratch("hidden", rows, m.H)
        lse = self.scratch("lse", s.B, NH, s.T, dtype="fp32")
        yield self._embedding(PREFILL, self.tokens, stream)
        yield self._norm(PREFILL, stream, "h0.norm1", norm, s.T)
        for i in range(m.L):
            yield from self.project(PREFILL, "qkv", norm, f"h{i}.qkv.weight", packed)
            heads = packed.view(s.B, s.T, NH + 2 * NKV, m.head_size)
            yield self._rope(PREFILL, heads, self.start)
            q, k, v = heads.split((NH, NKV, NKV), dim=2)
            shape = dict(B=s.B, T=s.T, NH=NH, NKV=NKV, HS=m.head_size, causal=True)
            outputs = dict(out=out.view(s.B, s.T, NH, m.head_size), lse=lse)
            yield self.call("attention", PREFILL, shape, (q, k, v, True), outputs)
            yield from self.keep(i, k, v)
            yield from self.project(PREFILL, "attproj", out, f"h{i}.attproj.weight", branch)
            yield self._residual(PREFILL, branch, stream, f"h{i}.norm2", other, norm, s.T)
            stream, other = other, stream
            yield from self._mlp(PREFILL, i, norm, gate_up, hidden, branch)
            if i + 1 < m.L:
                yield self._residual(PREFILL, branch, stream, f"h{i + 1}.norm1", other, norm, s.T)
                stream, other = other, stream
        yield self.gather(branch, self.branch)
        yield self.gather(stream, self.stream)

    def _decode(self) -> Iterator[Item]:
        s, m, B = self.sizes, self.model, self.sizes.B
        # Each of 2 L - 1 norms reads one and writes the other: the last one leaves the stream where `_final` looks.
        stream, other, branch = self.scratch("one other", B, m.C), self.stream, self.branch
        norm, out = self.scratch("one norm", B, m.C), self.scratch("one att", B, m.C)
        packed = self.scratch("one qkv", B, m.qkv_width)
        gate_up, hidden = self.scratch("one gate_up", B, 2 * m.H), self.scratch("one hidden", B, m.H)
        heads = packed.view(B, 1, m.NH + 2 * m.NKV, m.head_size)
        yield self._embedding(DECODE, self.token.view(B, 1), stream)
        yield self._norm(DECODE, stream, "h0.norm1", norm, 1)
        for i in range(m.L):
            yield from self.project(DECODE, "qkv", norm, f"h{i}.qkv.weight", packed)
            yield self._rope(DECODE, heads, self.lengths)
            k_cache, v_cache = self.cache(i, m.NKV, m.head_size)
            shape = dict(B=B, T=1, NH=m.NH, NKV=m.NKV, H=m.NH + 2 * m.NKV, HS=m.head_size, S=s.S)
            outputs = dict(out=out.view(B, 1, m.NH, m.head_size), k_cache=k_cache, v_cache=v_cache)
            yield self.call("decode_attention", "", shape, (heads, self.lengths, m.NH), outputs)
            yield from self.project(DECODE, "attproj", out, f"h{i}.attproj.weight", branch)
            yield self._residual(DECODE, branch, stream, f"h{i}.norm2", other, norm, 1)
            stream, other = other, stream
            yield from self._mlp(DECODE, i, norm, gate_up, hidden, branch)
            if i + 1 < m.L:
                yield self._residual(DECODE, branch, stream, f"h{i + 1}.norm1", other, norm, 1)
                stream, other = other, stream

    def _final(self) -> Iterator[Item]:
        B, C = self.sizes.B, self.model.C
        norm = self.scratch("one norm", B, C)
        yield self._residual(DECODE, self.branch, self.stream, "norm", self.scratch("one other", B, C), norm, 1)
        yield from self.project("", "head", norm, "wte" if self.model.tied else "head.weight", self.logits)

    def constants(self) -> None:
        for into, values in zip((self.cos, self.sin), self.angles(), strict=True):
            into.copy_(values)

    def angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        return rope.table(self.model.max_t, self.model.head_size, self.model.theta)

    def _embedding(self, stage: str, tokens: torch.Tensor, out: torch.Tensor) -> Call:
        (B, T), C = tokens.shape, self.model.C
        shape = dict(B=B, T=T, C=C, V=self.model.vp, positions=False)
        return self.call("embedding", stage, shape, (tokens, self.table("wte"), None), dict(out=out.view(B, T, C)))

    def _rope(self, stage: str, heads: torch.Tensor, start: torch.Tensor) -> Call:
        shape = self.model.rope_shape(*heads.shape[:2])
        inputs = (start, self.cos, self.sin, self.model.NH + self.model.NKV, STYLE)
        return self.call("rope", stage, shape, inputs, dict(qkv=heads))

    def _norm(self, stage: str, x: torch.Tensor, norm: str, out: torch.Tensor, T: int) -> Call:
        btc = self.sizes.B, T, self.model.C
        shape = dict(B=btc[0], T=T, C=btc[2], eps=self.model.eps, dresidual=True)
        outputs = dict(out=out.view(btc), rstd=self._rstd(stage, T))
        return self.call("rmsnorm", stage, shape, (x.view(btc), self.weight(f"{norm}.weight"), self.model.eps), outputs)

    def _residual(self, stage: str, x, residual, norm: str, residual_out, out, T: int) -> Call:
        btc = self.sizes.B, T, self.model.C
        shape = dict(B=btc[0], T=T, C=btc[2], eps=self.model.eps, dresidual=True)
        inputs = (x.view(btc), residual.view(btc), self.weight(f"{norm}.weight"), self.model.eps)
        outputs = dict(residual_out=residual_out.view(btc), out=out.view(btc), rstd=self._rstd(stage, T))
        return self.call("residual_rmsnorm", stage, shape, inputs, outputs)

    def _rstd(self, stage: str, T: int) -> torch.Tensor:
        """Written, and read by nobody."""
        return self.scratch(f"{stage} rstd", self.sizes.B, T, dtype="fp32")

    def _mlp(self, stage: str, block: int, x, gate_up, hidden, out) -> Iterator[Item]:
        yield from self.project(stage, "gate_up", x, f"h{block}.gate_up.weight", gate_up)
        yield self.call("swiglu", stage, dict(M=len(x), H=self.model.H), (gate_up,), dict(out=hidden))
        yield from self.project(stage, "down", hidden, f"h{block}.down.weight", out)


class Cached(cached.Cached):
    """The plain network of reference/models with a cache."""

    def __init__(self, model: Llama2, net: Plain, B: int, S: int, dtype: torch.dtype):
        super().__init__(net, B, S, model.L, model.NKV, model.head_size, dtype)
        self.model = model

    def forward(self, tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        net, m, (B, T) = self.net, self.model, tokens.shape
        cos, sin = net.cos[place], net.sin[place]
        x = F.embedding(tokens, net.wte)
        for i in range(m.L):
            block = net.get_submodule(f"h{i}")
            packed = block.qkv(block.norm1(x)).view(B, T, -1, m.head_size)
            q, k, v = packed.split((m.NH, m.NKV, m.NKV), dim=2)
            out = self.attend(i, rotated(q, cos, sin), rotated(k, cos, sin), v, place)
            x = x + block.attproj(out)
            gate, up = block.gate_up(block.norm2(x)).chunk(2, dim=-1)
            x = x + block.down(F.silu(gate) * up)
        return F.linear(net.norm(x[:, -1]), net.wte if m.tied else net.head.weight)
