"""GPT-2 as lists of calls, with its activations: a training step; prompts read and texts gone on with."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.models import RECOMPUTE, CallId, cached, inference, program
from bench.models.calls import Call
from bench.models.inference import DECODE, PREFILL, Item, Move
from bench.models.memory import Memory
from reference.models.gpt2 import EPS, GPT2
from reference.models.plain import Plain


@dataclass
class Activations:
    """What one block's forward leaves for its backward. Matrices are (B*T, …); `btc` views are (B, T, C)."""

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


class Program(program.Program[GPT2]):
    """The fused step: residual adds in the layernorms, GELU in the matmuls, the loss with its gradient."""

    def __init__(self, model: GPT2, memory: Memory):
        super().__init__(model, memory)
        mem, B, T = memory, memory.B, memory.T
        M, C = B * T, model.C
        self.embedded = mem.new(B, T, C)
        self.mean, self.rstd = self._statistics()  # of block 0's ln1
        norms = mem.kept("layernorm", 2 * model.L, M, C)
        gelus = mem.kept("gelu", model.L, M, 4 * C)
        if "layernorm" in mem.recompute:  # backward reads the statistics that forward saved, not these
            self.mean_again, self.rstd_again = self._statistics()
            mem.saved_bytes -= self.mean_again.nbytes + self.rstd_again.nbytes
        self.blocks = [self._block(norms[2 * i], norms[2 * i + 1], gelus[i]) for i in range(model.L)]
        self.final = mem.new(M, C)  # lnf's output
        self.logits = mem.new(M, model.vp)  # becomes dlogits

        # Scratch, used again by every block: a branch's output in forward; in backward the gradient of the
        # stream (two: read one, write the other), of a C-wide branch, and of the widest activations.
        self.branch = mem.new(M, C)
        self.streams = [mem.new(M, C), mem.new(M, C)]
        self.dbranch = mem.new(M, C)
        self.dwide = mem.new(M, 4 * C)
        self.dqkv = self.dwide.view(-1)[: M * 3 * C].view(M, 3 * C)

        self.cleared = [mem.grads["wpe"]]  # see the embedding's backward

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and rstd of a layernorm."""
        mem = self.memory
        return mem.new(mem.B, mem.T, dtype="fp32"), mem.new(mem.B, mem.T, dtype="fp32")

    def _block(self, norm1: torch.Tensor, norm2: torch.Tensor, gelu: torch.Tensor) -> Activations:
        mem = self.memory
        M, C = mem.B * mem.T, self.model.C
        (mean, rstd), (mean2, rstd2) = self._statistics(), self._statistics()
        return Activations(
            norm1=norm1,
            qkv=mem.new(M, 3 * C),
            attention=mem.new(M, C),
            lse=mem.new(mem.B, self.model.NH, mem.T, dtype="fp32"),
            residual1=mem.new(M, C),
            norm2=norm2,
            mean2=mean2,
            rstd2=rstd2,
            pre_gelu=mem.new(M, 4 * C),
            gelu=gelu,
            residual2=mem.new(M, C),
            mean=mean,
            rstd=rstd,
        )

    @staticmethod
    def recomputations(model: GPT2) -> dict[str, int]:
        return {"gelu": model.L, "layernorm": 2 * model.L}

    def heads(self, matrix: torch.Tensor) -> torch.Tensor:
        """(B*T, n*C) as (B, T, n*NH, HS)."""
        return matrix.view(self.memory.B, self.memory.T, -1, self.model.head_size)

    def q_k_v(self, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The three slices of a packed (B*T, 3*C) matrix, each (B, T, NH, HS)."""
        return self.heads(matrix).split(self.model.NH, dim=2)

    def forward_backward(self, accumulate: bool) -> list[Call]:
        return [*self._forward(), *self._backward(accumulate)]

    def _forward(self) -> Iterator[Call]:
        mem, P, btc, L = self.memory, self.memory.params, self.memory.btc, self.model.L

        def matmul(name: str, x, weight, bias, epilogue, out, pre_gelu=None) -> Call:
            inputs, outputs = (x, weight, bias, epilogue), dict(out=out, pre_gelu=pre_gelu)
            return Call(CallId("matmul", name, "forward"), inputs, outputs)

        def residual_layernorm(name, residual, norm, residual_out, out, mean, rstd) -> Call:
            inputs = (btc(self.branch), btc(residual), P[f"{norm}.weight"], P[f"{norm}.bias"], EPS)
            outputs = dict(residual_out=btc(residual_out), out=btc(out), mean=mean, rstd=rstd)
            return Call(CallId("residual_layernorm", name, "forward"), inputs, outputs)

        inputs = (mem.tokens, P["wte"], P["wpe"][: mem.T])
        yield Call(CallId("embedding", "", "forward"), inputs, dict(out=self.embedded))
        stream = self.embedded.view(mem.B * mem.T, -1)
        yield Call(
            CallId("layernorm", "", "forward"),
            (self.embedded, P["h0.ln1.weight"], P["h0.ln1.bias"], EPS),
            dict(out=btc(self.blocks[0].norm1), mean=self.mean, rstd=self.rstd),
        )
        for i, a in enumerate(self.blocks):
            weight = {n: P[f"h{i}.{n}.weight"] for n in ("qkv", "attproj", "fc", "fcproj")}
            bias = {n: P[f"h{i}.{n}.bias"] for n in weight}
            yield matmul("qkv", a.norm1, weight["qkv"], bias["qkv"], "bias", a.qkv)
            outputs = dict(out=self.heads(a.attention), lse=a.lse)
            yield Call(CallId("attention", "", "forward"), (*self.q_k_v(a.qkv), True), outputs)
            yield matmul("attproj", a.attention, weight["attproj"], bias["attproj"], "bias", self.branch)
            yield residual_layernorm("block", stream, f"h{i}.ln2", a.residual1, a.norm2, a.mean2, a.rstd2)
            yield matmul("fc", a.norm2, weight["fc"], bias["fc"], "bias_gelu", a.gelu, a.pre_gelu)
            yield matmul("fcproj", a.gelu, weight["fcproj"], bias["fcproj"], "bias", self.branch)
            last = ("final", "lnf", self.final)
            name, norm, out = ("block", f"h{i + 1}.ln1", self.blocks[i + 1].norm1) if i + 1 < L else last
            yield residual_layernorm(name, a.residual1, norm, a.residual2, out, a.mean, a.rstd)
            stream = a.residual2
        yield matmul("lm_head", self.final, P["wte"], None, "none", self.logits)
        outputs = dict(logits=btc(self.logits), losses=mem.losses)
        yield Call(CallId("fused_classifier", "", "forward"), (mem.targets, mem.dlosses, self.model.v), outputs)

    def _backward(self, accumulate: bool) -> Iterator[Call]:
        mem, P, G, btc = self.memory, self.memory.params, self.memory.grads, self.memory.btc
        stream, other = self.streams  # gradient of the residual stream: the one that holds it now, the next to write

        def matmul(name: str, dout, x, parameter, dx, x_pre_gelu=None) -> Call:
            dbias = G.get(f"{parameter.removesuffix('weight')}bias")
            inputs = (dout, x, P[parameter], x_pre_gelu, accumulate)
            return Call(CallId("matmul", name, "backward"), inputs, dict(dx=dx, dweight=G[parameter], dbias=dbias))

        def residual_layernorm(name, dresidual_out, residual_out, norm, mean, rstd, dresidual) -> Call:
            dstream = None if dresidual_out is None else btc(dresidual_out)
            inputs = (btc(self.dbranch), dstream, btc(residual_out), P[f"{norm}.weight"], mean, rstd, accumulate)
            outputs = dict(dresidual=btc(dresidual), dweight=G[f"{norm}.weight"], dbias=G[f"{norm}.bias"])
            return Call(CallId("residual_layernorm", name, "backward"), inputs, outputs)

        # The head is tied to wte: this gradient goes into dwte first, the embedding's is added at the end.
        yield matmul("lm_head", self.logits, self.final, "wte", self.dbranch)
        for i in reversed(range(self.model.L)):
            a = self.blocks[i]
            if i + 1 == self.model.L:
                yield residual_layernorm("final", None, a.residual2, "lnf", a.mean, a.rstd, stream)
            else:
                yield residual_layernorm("block", stream, a.residual2, f"h{i + 1}.ln1", a.mean, a.rstd, other)
                stream, other = other, stream
            # A residual add hands its gradient to both sides, so `stream` is the gradient of fcproj's output too.
            yield from self._gelu_again(a)
            yield matmul("fcproj", stream, a.gelu, f"h{i}.fcproj.weight", self.dwide, a.pre_gelu)
            yield from self._layernorm_again(a.residual1, f"h{i}.ln2", a.norm2)
            yield matmul("fc", self.dwide, a.norm2, f"h{i}.fc.weight", self.dbranch)
            yield residual_layernorm("block", stream, a.residual1, f"h{i}.ln2", a.mean2, a.rstd2, other)
            stream, other = other, stream
            yield matmul("attproj", stream, a.attention, f"h{i}.attproj.weight", self.dbranch)
            inputs = (self.heads(self.dbranch), *self.q_k_v(a.qkv), self.heads(a.attention), a.lse, True)
            outputs = dict(zip(("dq", "dk", "dv"), self.q_k_v(self.dqkv), strict=True))
            yield Call(CallId("attention", "", "backward"), inputs, outputs)
            into_block = self.blocks[i - 1].residual2 if i else self.embedded
            yield from self._layernorm_again(into_block, f"h{i}.ln1", a.norm1)
            yield matmul("qkv", self.dqkv, a.norm1, f"h{i}.qkv.weight", self.dbranch)
        yield Call(
            CallId("layernorm", "", "backward"),
            (btc(self.dbranch), btc(stream), self.embedded, P["h0.ln1.weight"], self.mean, self.rstd, accumulate),
            dict(dx=btc(other), dweight=G["h0.ln1.weight"], dbias=G["h0.ln1.bias"]),
        )
        # accumulate=True on the first micro-batch as well: dwte holds the head's part, and dwpe is cleared.
        inputs = (btc(other), mem.tokens, self.model.vp, True)
        yield Call(CallId("embedding", "", "backward"), inputs, dict(dwte=G["wte"], dwpe=G["wpe"][: mem.T]))

    def _layernorm_again(self, x: torch.Tensor, norm: str, out: torch.Tensor) -> Iterator[Call]:
        mem = self.memory
        if "layernorm" in mem.recompute:
            inputs = (mem.btc(x), mem.params[f"{norm}.weight"], mem.params[f"{norm}.bias"], EPS)
            outputs = dict(out=mem.btc(out), mean=self.mean_again, rstd=self.rstd_again)
            yield Call(CallId("layernorm", RECOMPUTE, "forward"), inputs, outputs)

    def _gelu_again(self, a: Activations) -> Iterator[Call]:
        if "gelu" in self.memory.recompute:
            outputs = dict(out=a.gelu.view(-1))
            yield Call(CallId("gelu", RECOMPUTE, "forward"), (a.pre_gelu.view(-1),), outputs)


class Inference(inference.Inference[GPT2]):
    """Prefill through the training step's layers, decode through gemv and decode_attention. Biases that no layer adds
    are added in place."""

    def _prefill(self) -> Iterator[Item]:
        s, m = self.sizes, self.model
        C, rows = m.C, s.B * s.T
        self.branch, self.stream = self.new(s.B, C), self.new(s.B, C)  # of the last token of each sequence
        P, inputs = PREFILL, (self.tokens, self.table("wte"), self.table("wpe")[: s.T])
        stream, other, branch = (self.scratch(name, rows, C) for name in ("stream", "other", "branch"))
        norm, packed, out = (
            self.scratch("norm", rows, C),
            self.scratch("qkv", rows, 3 * C),
            self.scratch("att", rows, C),
        )
        wide, pre = self.scratch("wide", rows, 4 * C), self.scratch("pre_gelu", rows, 4 * C)
        lse = self.scratch("lse", s.B, m.NH, s.T, dtype="fp32")
        btc = (s.B, s.T, C)
        yield self.call("embedding", P, dict(B=s.B, T=s.T, C=C, V=m.vp), inputs, dict(out=stream.view(btc)))
        yield self._layernorm(P, stream, "h0.ln1", norm, s.T)
        for i in range(m.L):
            yield from self._linear(P, "qkv", norm, f"h{i}.qkv", packed)
            q, k, v = packed.view(s.B, s.T, 3 * m.NH, m.head_size).split(m.NH, dim=2)
            shape = dict(B=s.B, T=s.T, NH=m.NH, NKV=m.NH, HS=m.head_size, causal=True)
            outputs = dict(out=out.view(s.B, s.T, m.NH, m.head_size), lse=lse)
            yield self.call("attention", P, shape, (q, k, v, True), outputs)
            yield from self.keep(i, k, v)
            yield from self._linear(P, "attproj", out, f"h{i}.attproj", branch)
            yield self._residual(P, branch, stream, f"h{i}.ln2", other, norm, s.T)
            stream, other = other, stream
            yield from self._linear(P, "fc", norm, f"h{i}.fc", wide, pre)
            yield from self._linear(P, "fcproj", wide, f"h{i}.fcproj", branch)
            if i + 1 < m.L:
                yield self._residual(P, branch, stream, f"h{i + 1}.ln1", other, norm, s.T)
                stream, other = other, stream
        yield self.gather(branch, self.branch)
        yield self.gather(stream, self.stream)

    def _decode(self) -> Iterator[Item]:
        s, m = self.sizes, self.model
        C, B, wpe = m.C, s.B, self.table("wpe")
        # Each of 2 L - 1 norms reads one and writes the other: the last one leaves the stream where `_final` looks.
        stream, other, branch = self.scratch("one other", B, C), self.stream, self.branch
        rows, norm, packed = self.new(B, C), self.scratch("one norm", B, C), self.scratch("one qkv", B, 3 * C)
        out, wide, pre = (
            self.scratch("one att", B, C),
            self.scratch("one wide", B, 4 * C),
            self.scratch("one pre", B, 4 * C),
        )
        heads = dict(NH=m.NH, NKV=m.NH, H=3 * m.NH, HS=m.head_size)
        # Sequences may stand at different positions: to the layer they are the tokens of one, with rows of wpe of
        # theirs.
        yield Move("positions", torch.index_select, (wpe, 0, self.lengths), dict(out=rows))
        inputs = (self.token.view(1, B), self.table("wte"), rows)
        yield self.call("embedding", DECODE, dict(B=1, T=B, C=C, V=m.vp), inputs, dict(out=stream.view(1, B, C)))
        yield self._layernorm(DECODE, stream, "h0.ln1", norm, 1)
        for i in range(m.L):
            yield from self._linear(DECODE, "qkv", norm, f"h{i}.qkv", packed)
            k_cache, v_cache = self.cache(i, m.NH, m.head_size)
            seen = (packed.view(B, 1, 3 * m.NH, m.head_size), self.lengths, m.NH)
            outputs = dict(out=out.view(B, 1, m.NH, m.head_size), k_cache=k_cache, v_cache=v_cache)
            yield self.call("decode_attention", "", dict(B=B, T=1, S=s.S, **heads), seen, outputs)
            yield from self._linear(DECODE, "attproj", out, f"h{i}.attproj", branch)
            yield self._residual(DECODE, branch, stream, f"h{i}.ln2", other, norm, 1)
            stream, other = other, stream
            yield from self._linear(DECODE, "fc", norm, f"h{i}.fc", wide, pre)
            yield from self._linear(DECODE, "fcproj", wide, f"h{i}.fcproj", branch)
            if i + 1 < m.L:
                yield self._residual(DECODE, branch, stream, f"h{i + 1}.ln1", other, norm, 1)
                stream, other = other, stream

    def _final(self) -> Iterator[Item]:
        B, C = self.sizes.B, self.model.C
        norm = self.scratch("one norm", B, C)
        yield self._residual(DECODE, self.branch, self.stream, "lnf", self.scratch("one other", B, C), norm, 1)
        yield from self.project("", "head", norm, "wte", self.logits)

    def _statistics(self, stage: str, T: int) -> dict[str, torch.Tensor]:
        """Of a layernorm: written, and read by nobody."""
        return {name: self.scratch(f"{stage} {name}", self.sizes.B, T, dtype="fp32") for name in ("mean", "rstd")}

    def _layernorm(self, stage: str, x: torch.Tensor, norm: str, out: torch.Tensor, T: int) -> Item:
        btc = self.sizes.B, T, self.model.C
        shape = dict(B=btc[0], T=T, C=btc[2], eps=EPS, dresidual=True)
        inputs = (x.view(btc), self.weight(f"{norm}.weight"), self.weight(f"{norm}.bias"), EPS)
        return self.call("layernorm", stage, shape, inputs, dict(out=out.view(btc), **self._statistics(stage, T)))

    def _residual(self, stage: str, x, residual, norm: str, residual_out, out, T: int) -> Item:
        btc = self.sizes.B, T, self.model.C
        shape = dict(B=btc[0], T=T, C=btc[2], eps=EPS, dresidual=True)
        weights = self.weight(f"{norm}.weight"), self.weight(f"{norm}.bias")
        outputs = dict(residual_out=residual_out.view(btc), out=out.view(btc), **self._statistics(stage, T))
        return self.call("residual_layernorm", stage, shape, (x.view(btc), residual.view(btc), *weights, EPS), outputs)

    def _linear(self, stage: str, name: str, x, parameter: str, out, pre_gelu=None) -> Iterator[Item]:
        """With its bias, and GELU where there is room for what goes into it."""
        weight, bias = f"{parameter}.weight", f"{parameter}.bias"
        if stage == PREFILL and not self.sizes.group:
            epilogue = "bias" if pre_gelu is None else "bias_gelu"
            yield self.matmul(f"{stage}-{name}", x, weight, bias, epilogue, out, pre_gelu)
            return
        into = out if pre_gelu is None else pre_gelu
        yield from self.project(stage, name, x, weight, into)
        yield Move("bias", into.add_, (self.weight(bias),), {})
        if pre_gelu is not None:
            yield self.call("gelu", stage, dict(N=out.numel()), (pre_gelu.view(-1),), dict(out=out.view(-1)))


class Cached(cached.Cached):
    """The plain network of reference/models with a cache."""

    def __init__(self, model: GPT2, net: Plain, B: int, S: int, dtype: torch.dtype):
        super().__init__(net, B, S, model.L, model.NH, model.head_size, dtype)
        self.model = model

    def forward(self, tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        net, (B, T), heads = self.net, tokens.shape, (3, self.model.NH, self.model.head_size)
        x = F.embedding(tokens, net.wte) + net.wpe[place]
        for i in range(self.model.L):
            block = net.get_submodule(f"h{i}")
            q, k, v = block.qkv(block.ln1(x)).view(B, T, *heads).unbind(2)
            x = x + block.attproj(self.attend(i, q, k, v, place))
            x = x + block.fcproj(F.gelu(block.fc(block.ln2(x)), approximate="tanh"))
        return F.linear(net.lnf(x[:, -1]), net.wte)
