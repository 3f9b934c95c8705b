"""The GPT-2 training step, assembled from variants of the registry, in memory that is planned once.

    memory = Memory(model, B, T, "bf16")
    step = Step(memory, modules)             # modules: {("matmul/qkv", "forward"): an imported variant, …}
    step.load(parameters)
    loss, norm = step.run(batches, lr)

`Memory` allocates every tensor of the step. `forward_backward`, `norm_call` and `adamw_call` write the step down
as a list of calls of the contract, in order, with their arguments; they are the whole model. `Step` binds each
call to a variant once, so that running is one loop: nothing is allocated and nothing is looked up. On a GPU that
loop is recorded once as a graph (`Step.capture`) and replayed.

A call's id is its layer and shape as `reference.<layer>.shapes` names them: "matmul/qkv", "attention".
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from bench.devices import Device, open_device
from bench.registry import takes_workspace
from bench.tensors import DTYPES
from reference import contract
from reference.models import Model

LAYERS = (
    "embedding",
    "layernorm",
    "residual_layernorm",
    "matmul",
    "attention",
    "fused_classifier",
    "global_norm",
    "adamw",
)
MAX_NORM = 1.0  # gradients are clipped to this global L2 norm, as GPT-2 is trained
CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s guard against a division by zero
ALIGN = 64  # bytes: one cache line, one AVX-512 register
RECOMPUTABLE = ("gelu", "layernorm")  # outputs that backward can make again from what is kept anyway

Key = tuple[str, str]  # (id, phase)
Batch = tuple[torch.Tensor, torch.Tensor]  # tokens, targets: (B, T) int64


def step_shapes(model: Model, B: int, T: int, dtype: str, recompute: Collection[str] = ()) -> dict[str, contract.Call]:
    """{id: Call} for every layer and shape that the step uses; shapes carry their dtype.

    recompute: of RECOMPUTABLE; each adds a forward "<layer>/recompute".
    """
    found = {}
    for layer in LAYERS:
        for name, call in contract.load(layer).shapes(model, B, T).items():
            found[f"{layer}/{name}" if name else layer] = contract.Call({**call.shape, "dtype": dtype}, call.calls)
    for layer in recompute:
        (call,) = contract.load(layer).shapes(model, B, T).values()
        calls = {"gelu": model.L, "layernorm": 2 * model.L}[layer]
        found[_again(layer)] = contract.Call({**call.shape, "dtype": dtype}, calls)
    return found


def step_keys(model: Model, B: int, T: int, dtype: str, recompute: Collection[str] = ()) -> list[Key]:
    """Every (id, phase) that needs a variant."""
    keys = []
    for id in step_shapes(model, B, T, dtype, recompute):
        phases = contract.phases_of(contract.load(layer_of(id)))
        keys += [(id, phase) for phase in phases if phase == "forward" or id != _again(layer_of(id))]
    return keys


def _again(layer: str) -> str:
    return f"{layer}/recompute"


def layer_of(id: str) -> str:
    return id.partition("/")[0]


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


@dataclass(frozen=True)
class Call:
    """One call of a layer: positional inputs and scalars, and what it writes, as the contract orders them."""

    id: str
    phase: str
    inputs: tuple
    outputs: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.id, self.phase

    @property
    def accumulate(self) -> bool:
        p = contract.pass_of(contract.load(layer_of(self.id)), self.phase)
        return p.accumulates and self.inputs[-1]


def forward_backward(mem: Memory, accumulate: bool) -> list[Call]:
    """One micro-batch, from `mem.tokens` and `mem.targets` to `mem.losses` and `mem.grads`.

    accumulate: False on the first micro-batch of a step (gradients are overwritten), True on the others.
    """
    return [*_forward(mem), *_backward(mem, accumulate)]


def _forward(mem: Memory) -> Iterator[Call]:
    P, btc, L = mem.params, mem.btc, mem.model.L
    eps = contract.load("layernorm").EPS

    def matmul(name: str, x, weight, bias, epilogue, out, pre_gelu=None) -> Call:
        return Call(f"matmul/{name}", "forward", (x, weight, bias, epilogue), dict(out=out, pre_gelu=pre_gelu))

    def residual_layernorm(name, residual, norm, residual_out, out, mean, rstd) -> Call:
        inputs = (btc(mem.branch), btc(residual), P[f"{norm}.weight"], P[f"{norm}.bias"], eps)
        outputs = dict(residual_out=btc(residual_out), out=btc(out), mean=mean, rstd=rstd)
        return Call(f"residual_layernorm/{name}", "forward", inputs, outputs)

    yield Call("embedding", "forward", (mem.tokens, P["wte"], P["wpe"][: mem.T]), dict(out=mem.embedded))
    stream = mem.embedded.view(mem.B * mem.T, -1)
    yield Call(
        "layernorm",
        "forward",
        (mem.embedded, P["h0.ln1.weight"], P["h0.ln1.bias"], eps),
        dict(out=btc(mem.blocks[0].norm1), mean=mem.mean, rstd=mem.rstd),
    )
    for i, a in enumerate(mem.blocks):
        weight = {n: P[f"h{i}.{n}.weight"] for n in ("qkv", "attproj", "fc", "fcproj")}
        bias = {n: P[f"h{i}.{n}.bias"] for n in weight}
        yield matmul("qkv", a.norm1, weight["qkv"], bias["qkv"], "bias", a.qkv)
        outputs = dict(out=mem.heads(a.attention), lse=a.lse)
        yield Call("attention", "forward", (*mem.q_k_v(a.qkv), True), outputs)
        yield matmul("attproj", a.attention, weight["attproj"], bias["attproj"], "bias", mem.branch)
        yield residual_layernorm("block", stream, f"h{i}.ln2", a.residual1, a.norm2, a.mean2, a.rstd2)
        yield matmul("fc", a.norm2, weight["fc"], bias["fc"], "bias_gelu", a.gelu, a.pre_gelu)
        yield matmul("fcproj", a.gelu, weight["fcproj"], bias["fcproj"], "bias", mem.branch)
        name, norm, out = ("block", f"h{i + 1}.ln1", mem.blocks[i + 1].norm1) if i + 1 < L else _last(mem)
        yield residual_layernorm(name, a.residual1, norm, a.residual2, out, a.mean, a.rstd)
        stream = a.residual2
    yield matmul("lm_head", mem.final, P["wte"], None, "none", mem.logits)
    outputs = dict(logits=btc(mem.logits), losses=mem.losses)
    yield Call("fused_classifier", "forward", (mem.targets, mem.dlosses, mem.model.v), outputs)


def _last(mem: Memory) -> tuple[str, str, torch.Tensor]:
    return "final", "lnf", mem.final


def _backward(mem: Memory, accumulate: bool) -> Iterator[Call]:
    P, G, btc = mem.params, mem.grads, mem.btc
    stream, other = mem.streams  # gradient of the residual stream: the one that holds it now, the one to write next

    def matmul(name: str, dout, x, parameter, dx, x_pre_gelu=None) -> Call:
        dbias = G.get(f"{parameter.removesuffix('weight')}bias")
        inputs = (dout, x, P[parameter], x_pre_gelu, accumulate)
        return Call(f"matmul/{name}", "backward", inputs, dict(dx=dx, dweight=G[parameter], dbias=dbias))

    def residual_layernorm(name, dresidual_out, residual_out, norm, mean, rstd, dresidual) -> Call:
        dstream = None if dresidual_out is None else btc(dresidual_out)
        inputs = (btc(mem.dbranch), dstream, btc(residual_out), P[f"{norm}.weight"], mean, rstd, accumulate)
        outputs = dict(dresidual=btc(dresidual), dweight=G[f"{norm}.weight"], dbias=G[f"{norm}.bias"])
        return Call(f"residual_layernorm/{name}", "backward", inputs, outputs)

    def layernorm_again(x: torch.Tensor, norm: str, out: torch.Tensor) -> Iterator[Call]:
        if "layernorm" in mem.recompute:
            inputs = (btc(x), P[f"{norm}.weight"], P[f"{norm}.bias"], contract.load("layernorm").EPS)
            outputs = dict(out=btc(out), mean=mem.mean_again, rstd=mem.rstd_again)
            yield Call(_again("layernorm"), "forward", inputs, outputs)

    def gelu_again(a: Activations) -> Iterator[Call]:
        if "gelu" in mem.recompute:
            yield Call(_again("gelu"), "forward", (a.pre_gelu.view(-1),), dict(out=a.gelu.view(-1)))

    # The head is tied to wte: this gradient goes into dwte first, the embedding's is added at the end.
    yield matmul("lm_head", mem.logits, mem.final, "wte", mem.dbranch)
    for i in reversed(range(mem.model.L)):
        a = mem.blocks[i]
        if i + 1 == mem.model.L:
            yield residual_layernorm("final", None, a.residual2, "lnf", a.mean, a.rstd, stream)
        else:
            yield residual_layernorm("block", stream, a.residual2, f"h{i + 1}.ln1", a.mean, a.rstd, other)
            stream, other = other, stream
        # A residual add hands its gradient to both sides, so `stream` is the gradient of fcproj's output too.
        yield from gelu_again(a)
        yield matmul("fcproj", stream, a.gelu, f"h{i}.fcproj.weight", mem.dwide, a.pre_gelu)
        yield from layernorm_again(a.residual1, f"h{i}.ln2", a.norm2)
        yield matmul("fc", mem.dwide, a.norm2, f"h{i}.fc.weight", mem.dbranch)
        yield residual_layernorm("block", stream, a.residual1, f"h{i}.ln2", a.mean2, a.rstd2, other)
        stream, other = other, stream
        yield matmul("attproj", stream, a.attention, f"h{i}.attproj.weight", mem.dbranch)
        inputs = (mem.heads(mem.dbranch), *mem.q_k_v(a.qkv), mem.heads(a.attention), a.lse, True)
        outputs = dict(zip(("dq", "dk", "dv"), mem.q_k_v(mem.dqkv), strict=True))
        yield Call("attention", "backward", inputs, outputs)
        into_block = mem.blocks[i - 1].residual2 if i else mem.embedded
        yield from layernorm_again(into_block, f"h{i}.ln1", a.norm1)
        yield matmul("qkv", mem.dqkv, a.norm1, f"h{i}.qkv.weight", mem.dbranch)
    yield Call(
        "layernorm",
        "backward",
        (btc(mem.dbranch), btc(stream), mem.embedded, P["h0.ln1.weight"], mem.mean, mem.rstd, accumulate),
        dict(dx=btc(other), dweight=G["h0.ln1.weight"], dbias=G["h0.ln1.bias"]),
    )
    # accumulate=True on the first micro-batch as well: dwte holds the head's part, `Step` has cleared dwpe.
    inputs = (btc(other), mem.tokens, mem.model.vp, True)
    yield Call("embedding", "backward", inputs, dict(dwte=G["wte"], dwpe=G["wpe"][: mem.T]))


def norm_call(mem: Memory) -> Call:
    return Call("global_norm", "forward", (list(mem.grads.values()),), dict(norm=mem.norm))


def adamw_call(mem: Memory) -> Call:
    adamw = contract.load("adamw")
    lists = {n: None if d is None else list(d.values()) for n, d in vars(mem).items() if n in ADAMW_STATE}
    decays = adamw.weight_decays(list(mem.model.parameter_shapes().values()))
    h = adamw.HYPER
    inputs = (
        list(mem.grads.values()),
        mem.step,
        mem.lr,
        mem.grad_scale,
        h["beta1"],
        h["beta2"],
        h["eps"],
        decays,
    )
    return Call("adamw", "forward", inputs, {name: lists[name] for name in ADAMW_STATE})


ADAMW_STATE = ("params", "m", "v", "masters")

Bound = tuple[Callable, tuple, dict[str, Any]]
Runner = Callable[[list[Bound]], Any]


class Step:
    """The training step over `memory`, each call bound to the variant that `modules` names for it.

    modules: {(id, phase): module}; a module has the contract's function of that phase, and perhaps `workspace`
    and `prepare`. accumulation: micro-batches a step. All variants share one workspace, as large as the largest
    wish.

    Everything between the copy of the batches and the reading of loss and norm is launched by `_launch`, from memory
    that is there, with what changes from step to step (batches, lr, the step's number) in tensors: so it can be
    recorded as a graph.
    """

    def __init__(self, memory: Memory, modules: Mapping[Key, Any], accumulation: int = 1):
        self.memory, self.modules, self.accumulation = memory, modules, accumulation
        mem = memory
        self.device = mem.device
        self.inbox = mem.inbox(accumulation)
        self.replay: Callable[[], None] | None = None
        sizes_and_dtype = (mem.model, mem.B, mem.T, mem.dtype, mem.recompute)
        self.shapes = {id: c.shape for id, c in step_shapes(*sizes_and_dtype).items()}
        self.first_calls = forward_backward(mem, accumulate=False)
        self.later_calls = forward_backward(mem, accumulate=True) if accumulation > 1 else []
        self.update_calls = [norm_call(mem), adamw_call(mem)]
        calls = [*self.first_calls, *self.later_calls, *self.update_calls]
        self._prepare(calls)
        sizes = [workspace_bytes(c, modules[c.key], self.shapes[c.id]) for c in calls]
        self.workspace = make_workspace(sizes, mem.device.place)
        self.bytes = sum(t.nbytes for t in mem.tensors) + self.workspace.nbytes
        self.first = [self._bind(c) for c in self.first_calls]
        self.later = [self._bind(c) for c in self.later_calls]
        self.update_norm, self.update_adamw = map(self._bind, self.update_calls)

    def _prepare(self, calls: list[Call]) -> None:
        for key in {c.key for c in calls}:
            if hasattr(self.modules[key], "prepare"):
                self.modules[key].prepare(self.shapes[key[0]], key[1])

    def _bind(self, call: Call) -> Bound:
        return bind(call, self.modules[call.key], self.workspace, self.shapes[call.id])

    def load(self, parameters: dict[str, torch.Tensor]) -> None:
        """Take parameters (by name, any float dtype) and start training afresh: no moments, step 0."""
        mem = self.memory
        if parameters.keys() != mem.params.keys():
            raise ValueError(f"parameters differ by {sorted(parameters.keys() ^ mem.params.keys())}")
        for name, value in parameters.items():
            mem.params[name].copy_(value)
            if mem.masters is not None:
                mem.masters[name].copy_(value)
        for flat in (mem.flat_m, mem.flat_v, mem.flat_grads):
            flat.zero_()
        mem.step.zero_()
        mem.dlosses.fill_(1 / (mem.B * mem.T * self.accumulation))

    def gradients(self, batches: Sequence[Batch]) -> None:
        """All micro-batches, forward and backward: gradients into `memory.grads`, mean loss into `.loss`."""
        self._take(batches)
        self._gradients(_run)

    def _take(self, batches: Sequence[Batch]) -> None:
        if len(batches) != self.accumulation:
            raise ValueError(f"{len(batches)} micro-batches for a step of {self.accumulation}")
        for into, batch in zip(self.inbox, batches, strict=True):
            for static, given in zip(into, batch, strict=True):
                static.copy_(given)

    def _gradients(self, run: Runner) -> None:
        mem = self.memory
        mem.loss.zero_()
        mem.grads["wpe"].zero_()
        for i, (tokens, targets) in enumerate(self.inbox):
            mem.tokens.copy_(tokens)
            mem.targets.copy_(targets)
            run(self.later if i else self.first)
            torch.mean(mem.losses, dim=(0, 1), out=mem.micro_loss)
            mem.loss.add_(mem.micro_loss, alpha=1 / self.accumulation)

    def run(self, batches: Sequence[Batch], lr: float, plain: bool = False) -> tuple[float, float]:
        """One step of training: (loss, gradient norm before clipping). One batch a micro-batch.

        The graph is replayed where there is one; plain: launch every kernel by itself nevertheless.
        """
        mem = self.memory
        self._take(batches)
        mem.lr.fill_(lr)
        if self.replay and not plain:
            self.replay()
        else:
            self._launch(_run)
        return mem.loss.item(), mem.norm.item()

    def _launch(self, run: Runner) -> None:
        """The whole step on the device: nothing is read back."""
        mem = self.memory
        mem.step.add_(1)
        self._gradients(run)
        run([self.update_norm])
        # grad_scale = min(1, MAX_NORM / (norm + eps)), on the device and in place
        torch.add(mem.norm, CLIP_EPS, out=mem.grad_scale)
        mem.grad_scale.reciprocal_().mul_(MAX_NORM).clamp_(max=1)
        run([self.update_adamw])

    def capture(self) -> str | None:
        """Record the whole step as a graph for `run` to replay; which call prevents that and why, else None.

        Warms up with one step of plain launches, in which kernels compile and libraries load. What was trained is
        lost: `load` follows. After a failure a CUDA process is best started afresh: some versions of torch leave their
        allocator in the middle of the capture.
        """
        self._launch(_run)
        self.device.synchronize()
        calls = [*self.first_calls, *self.later_calls, *self.update_calls]
        bounds = [*self.first, *self.later, self.update_norm, self.update_adamw]
        call_of = {id(bound): call for bound, call in zip(bounds, calls, strict=True)}
        broke: list[str] = []

        def run(bounds: list[Bound]) -> None:
            for bound in bounds:
                try:
                    _run([bound])
                except Exception as error:  # kept, because leaving the capture then fails too, and says less
                    broke.append(self._blame(call_of[id(bound)], error))
                    raise

        try:
            self.replay = self.device.capture(lambda: self._launch(run))
        except Exception as error:
            return broke[0] if broke else self._search(bounds, calls) or _one_line(error)
        return None

    def _search(self, bounds: list[Bound], calls: list[Call]) -> str | None:
        """The first call that cannot be captured alone; None where none is to blame, or nothing can be captured now."""
        try:
            self.device.capture(functools.partial(_run, [(self.memory.loss.zero_, (), {})]))
        except Exception:
            return None
        for bound, call in zip(bounds, calls, strict=True):
            try:
                self.device.capture(functools.partial(_run, [bound]))
            except Exception as error:
                return self._blame(call, error)
        return None

    def _blame(self, call: Call, error: Exception) -> str:
        module = self.modules[call.key]
        name = getattr(module, "__name__", str(module)).removeprefix("kernels.")
        return f"{' '.join(call.key)} ({name}): {_one_line(error)}"

    def run_timed(self, batches: Sequence[Batch], lr: float, clock: str | None = None) -> dict[Key, float]:
        """One step of plain launches with a clock around every call: milliseconds of each (id, phase), of all calls.

        clock: of the device, else its first one.
        """
        self._take(batches)
        self.memory.lr.fill_(lr)
        timer = self.device.timer(clock or self.device.clocks[0])

        def run(bounds: list[Bound]) -> None:
            for function, args, kwargs in bounds:
                timer.start()
                function(*args, **kwargs)
                timer.stop()

        with timer:
            self._launch(run)
        times: dict[Key, float] = {}
        for key, seconds in zip(self._keys_in_order(), timer.seconds, strict=True):
            times[key] = times.get(key, 0.0) + seconds * 1e3
        return times

    def run_marked(self, batches: Sequence[Batch], lr: float, mark: Callable[[Key], AbstractContextManager]) -> None:
        """One step of plain launches, each call inside `mark(its key)`."""
        self._take(batches)
        self.memory.lr.fill_(lr)
        keys = iter(self._keys_in_order())

        def run(bounds: list[Bound]) -> None:
            for bound in bounds:
                with mark(next(keys)):
                    _run([bound])

        self._launch(run)

    def _keys_in_order(self) -> list[Key]:
        """Of every call of a step."""
        later = [c for _ in range(self.accumulation - 1) for c in self.later_calls]
        return [c.key for c in [*self.first_calls, *later, *self.update_calls]]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _run(bound: list[Bound]) -> None:
    for function, args, kwargs in bound:
        function(*args, **kwargs)


def bind(call: Call, module: Any, workspace: torch.Tensor, shape: contract.Shape) -> Bound:
    """(function, positional, keyword) of one call, ready to run; its scratch is the front of `workspace`."""
    outputs = call.outputs
    if takes_workspace(module, call.phase):
        size = workspace_bytes(call, module, shape)
        outputs = {**outputs, "workspace": workspace[:size] if size else None}
    return getattr(module, call.phase), call.inputs, outputs


def workspace_bytes(call: Call, module: Any, shape: contract.Shape) -> int:
    """Scratch that the variant asks for at this call."""
    if not takes_workspace(module, call.phase):
        return 0
    return module.workspace({**shape, "accumulate": call.accumulate}, call.phase)


def make_workspace(sizes: list[int], device: str) -> torch.Tensor:
    """One uint8 buffer for the largest of `sizes`, aligned to ALIGN."""
    raw = torch.zeros(max(sizes, default=0) + ALIGN, dtype=torch.uint8, device=device)
    return raw[-raw.data_ptr() % ALIGN :][: max(sizes, default=0)]
