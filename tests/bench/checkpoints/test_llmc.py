"""llm.c's files against a reader that is written from the format's description alone; ten steps from a debug state."""

import dataclasses
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.checkpoints import llmc
from bench.checkpoints.llmc import DebugState, RankState, Shuffle
from bench.cli import CannotGoOn
from bench.core.variants import discover
from bench.models.program import program, step_calls
from bench.models.step import Step
from reference.models.gpt2 import GPT2, Network, init_parameters
from tests.bench.checkpoints.states import MODEL, same, state

C, L, V, VP, MAX_T = MODEL.C, MODEL.L, MODEL.v, MODEL.vp, MODEL.max_t
SIXTEEN = [  # (shape, our name of it in one layer) as the format's description lists them
    ((VP, C), "wte"),
    ((MAX_T, C), "wpe"),
    ((L, C), "h{}.ln1.weight"),
    ((L, C), "h{}.ln1.bias"),
    ((L, 3 * C, C), "h{}.qkv.weight"),
    ((L, 3 * C), "h{}.qkv.bias"),
    ((L, C, C), "h{}.attproj.weight"),
    ((L, C), "h{}.attproj.bias"),
    ((L, C), "h{}.ln2.weight"),
    ((L, C), "h{}.ln2.bias"),
    ((L, 4 * C, C), "h{}.fc.weight"),
    ((L, 4 * C), "h{}.fc.bias"),
    ((L, C, 4 * C), "h{}.fcproj.weight"),
    ((L, C), "h{}.fcproj.bias"),
    ((C,), "lnf.weight"),
    ((C,), "lnf.bias"),
]


def described(body: bytes, width: int) -> dict[str, torch.Tensor]:
    """The 16 tensors, by our names; bf16 are the upper halves of fp32."""
    numbers = np.frombuffer(body, "<u2" if width == 2 else "<u4").astype("<u4") << (16 if width == 2 else 0)
    floats, at = numbers.view("<f4"), 0
    found: dict[str, torch.Tensor] = {}
    for shape, name in SIXTEEN:
        count = int(np.prod(shape))
        whole = torch.from_numpy(floats[at : at + count].reshape(shape).copy())
        found |= {name.format(i): whole[i] for i in range(L)} if "{}" in name else {name: whole}
        at += count
    assert at == len(floats)
    return found


# --- model ---


@pytest.mark.parametrize(("dtype", "version", "width"), [("fp32", 3, 4), ("bf16", 5, 2)])
def test_a_model_is_what_its_format_says(tmp_path, dtype, version, width):
    weights = state(dtype=dtype).weights
    path = tmp_path / "model.bin"
    llmc.write_model(path, MODEL, dtype, weights)
    raw = path.read_bytes()
    head = struct.unpack("<256i", raw[:1024])
    assert head == (20240326, version, MAX_T, V, L, MODEL.NH, C, VP, *[0] * 248)
    read = described(raw[1024:], width)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name].float()) for name in read)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_comes_back_byte_for_byte(tmp_path, dtype):
    llmc.write_model(tmp_path / "a.bin", MODEL, dtype, state(dtype=dtype).weights)
    model, found, weights = llmc.read_model(tmp_path / "a.bin")
    assert (found, model.parameter_shapes()) == (dtype, MODEL.parameter_shapes()) and model.NH == MODEL.NH
    llmc.write_model(tmp_path / "b.bin", model, found, weights)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_a_known_size_has_its_name():
    from bench.checkpoints.state import sized

    assert sized(max_t=1024, v=50257, L=12, NH=12, C=768).name == "gpt2-124m"
    assert sized(max_t=1024, v=50257, L=12, NH=6, C=768).name == "gpt2-12x768"


def change(path: Path, at: int, value: int) -> None:
    """One int32 of a header."""
    raw = bytearray(path.read_bytes())
    raw[4 * at : 4 * at + 4] = struct.pack("<i", value)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, 20240520, "not llm.c's model"),
        (1, 1, "version 1 of llm.c's model, this program reads 3 and 5"),
        (1, 5, "more than the"),  # fp32's bytes, said to be bf16
        (2, 0, "no GPT-2 has these sizes"),
        (4, 2_000_000_000, "cut off"),  # no memory is taken for it
        (5, 3, "no GPT-2 has these sizes"),
        (6, -16, "no GPT-2 has these sizes"),
        (7, 200, "padded to 200, and not to 256"),
    ],
)
def test_a_damaged_model_is_refused_in_a_line(tmp_path, at, value, says):
    path = tmp_path / "model.bin"
    llmc.write_model(path, MODEL, "fp32", state(dtype="fp32").weights)
    llmc.read_model(path)
    change(path, at, value)
    with pytest.raises(CannotGoOn, match=f"model.bin: .*{says}"):
        llmc.read_model(path)


@pytest.mark.parametrize("size", [0, 3, 1000, 1024, 5000, -1])
def test_a_model_that_is_cut_off_is_refused(tmp_path, size):
    path = tmp_path / "model.bin"
    llmc.write_model(path, MODEL, "bf16", state().weights)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CannotGoOn, match=r"model\.bin: (not llm|cut off)"):
        llmc.read_model(path)


def test_nothing_is_overwritten_and_no_other_dtype_written(tmp_path):
    (tmp_path / "mine.bin").write_text("mine")
    with pytest.raises(CannotGoOn, match="it is there, and stays"):
        llmc.write_model(tmp_path / "mine.bin", MODEL, "bf16", state().weights)
    with pytest.raises(CannotGoOn, match="in fp32 or bf16, not in fp16"):
        llmc.write_model(tmp_path / "new.bin", MODEL, "fp16", state().weights)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("mine.bin", "mine")]


# --- optimizer state ---

N = MODEL.parameters


def rank_state(rank: int = 0, processes: int = 1, share: int = N, masters: bool = True, shuffle: bool = True):
    drawn = np.random.default_rng(rank).standard_normal
    m, v, master = (drawn(share).astype("<f4") for _ in range(3))
    order = Shuffle(np.arange(3, dtype="<i4"), np.arange(7, dtype="<i4")[::-1], bytes(range(252)) * 10)
    places = dict(rng=2**63 + 5, rng_last_update=2**40, shard=2, sample=2**33)
    return RankState(
        step=40,
        processes=processes,
        rank=rank,
        m=m,
        v=v,
        masters=master if masters else None,
        shuffle=order if shuffle else None,
        **places,
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("masters", [True, False])
def test_an_optimizer_state_is_what_its_format_says_and_comes_back(tmp_path, masters, shuffle):
    path, given = tmp_path / "state.bin", rank_state(masters=masters, shuffle=shuffle)
    llmc.write_state(path, given)
    raw = path.read_bytes()
    ints = struct.unpack("<256i", raw[:1024])
    assert ints[:6] == (20240527, 1, 1, 0, int(masters), int(shuffle)) and ints[10] == 40
    assert struct.unpack_from("<2Q", raw, 80) == (2**63 + 5, 2**40) and struct.unpack_from("<2Q", raw, 120) == (
        2,
        2**33,
    )
    assert not any(ints[6:10] + ints[11:20] + ints[24:30] + ints[34:])
    arrays = (given.m, given.v, given.masters) if masters else (given.m, given.v)
    body = b"".join(a.tobytes() for a in arrays if a is not None)
    if given.shuffle:
        body += struct.pack("<Q3iQ7i", 3, 0, 1, 2, 7, *reversed(range(7))) + given.shuffle.generator
    assert raw[1024:] == body
    llmc.write_state(tmp_path / "again.bin", llmc.read_state(path, N))
    assert (tmp_path / "again.bin").read_bytes() == raw


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_state_that_is_cut_off_or_anothers_is_refused(tmp_path, shuffle):
    path = tmp_path / "state.bin"
    llmc.write_state(path, rank_state(shuffle=shuffle))
    raw, chance = path.read_bytes(), random.Random(2)
    for cut in [1023, 1024, len(raw) - 1, *(chance.randrange(len(raw)) for _ in range(20))]:
        path.write_bytes(raw[:cut])
        with pytest.raises(CannotGoOn, match=r"state\.bin: (not llm|.* do not hold)"):
            llmc.read_state(path, N)
    path.write_bytes(raw + b"\0" * 4)
    with pytest.raises(CannotGoOn, match="do not hold"):
        llmc.read_state(path, N)
    path.write_bytes(raw)
    with pytest.raises(CannotGoOn, match="cut off, or of another model"):
        llmc.read_state(path, N + 8)
    change(path, 3, 1)
    with pytest.raises(CannotGoOn, match="header is damaged"):
        llmc.read_state(path, N)


# --- its output folder ---


@pytest.mark.parametrize(("dtype", "masters"), [("fp32", False), ("bf16", True), ("bf16", False)])
def test_a_state_goes_to_llmc_and_comes_back(tmp_path, dtype, masters):
    given = state(40, dtype, masters=masters)
    given.rest = {"updates": 40, "llmc": dict(rng=3, rng_last_update=2, shard=1, sample=9)}
    llmc.write_run(tmp_path / "a", given, MODEL)
    names = ["DONE_00000040", "model_00000040.bin", "state_00000040_00000.bin"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    found = llmc.read_run(tmp_path / "a")
    assert found.model["C"] == C
    assert same(dataclasses.replace(found, model=given.model), given)
    llmc.write_run(tmp_path / "b", found, MODEL)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_newest_step_with_a_marker_is_taken(tmp_path):
    for step in (10, 40):
        llmc.write_run(tmp_path, state(step), MODEL)
    assert llmc.read_run(tmp_path).step == 40
    (tmp_path / "DONE_00000040").unlink()
    assert llmc.read_run(tmp_path).step == 10
    (tmp_path / "DONE_00000010").unlink()
    with pytest.raises(CannotGoOn, match=r"no whole checkpoint of llm\.c"):
        llmc.read_run(tmp_path)


def test_states_that_several_processes_shared_are_joined(tmp_path):
    """ZeRO stage 1: each process has its part of every layer of every tensor."""
    given = state(40)
    llmc.write_run(tmp_path, given, MODEL)
    (tmp_path / "state_00000040_00000.bin").unlink()
    for rank in range(4):
        parts = {}
        for kind in ("m", "v", "masters"):
            whole = getattr(given, kind)
            one = [whole[n].ravel() for n in (name.format(i) for _, name in SIXTEEN for i in layers(name))]
            parts[kind] = torch.cat([t[rank * len(t) // 4 : (rank + 1) * len(t) // 4] for t in one]).numpy()
        shared = dataclasses.replace(rank_state(rank, 4), **parts)
        llmc.write_state(tmp_path / f"state_00000040_{rank:05d}.bin", shared)
    found = llmc.read_run(tmp_path)
    for kind in ("m", "v", "masters"):
        for name, tensor in getattr(given, kind).items():
            assert torch.equal(getattr(found, kind)[name], tensor), (kind, name)
    (tmp_path / "state_00000040_00002.bin").unlink()
    with pytest.raises(CannotGoOn, match=r"state_00000040_00002\.bin: no such file"):
        llmc.read_run(tmp_path)


def layers(name: str) -> range:
    return range(L if "{}" in name else 1)


# --- debug state, and llm.c's test ---


def plain_debug_state(model: GPT2, weights: dict[str, torch.Tensor], B: int, T: int) -> DebugState:
    tokens = torch.randint(0, model.v, (B, T + 1), generator=torch.Generator().manual_seed(3))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    net = Network(model)
    net.load(weights)
    loss = net(x, y)
    loss.backward()
    grads = {name: p.grad for name, p in net.named().items() if p.grad is not None}
    return DebugState(x, y, net(x).detach()[..., : model.v].contiguous(), loss.item(), grads)


def test_a_debug_state_is_what_its_format_says_and_comes_back(tmp_path):
    path, B, T = tmp_path / "debug_state.bin", 2, 8
    given = plain_debug_state(MODEL, init_parameters(MODEL, 1), B, T)
    llmc.write_debug_state(path, MODEL, given)
    raw = path.read_bytes()
    assert struct.unpack("<256i", raw[:1024]) == (20240327, 2, B, T, *[0] * 252)
    ids = struct.unpack_from(f"<{2 * B * T}i", raw, 1024)
    assert ids == (*given.x.flatten().tolist(), *given.y.flatten().tolist())
    at = 1024 + 8 * B * T
    assert raw[at : at + 4 * B * T * V] == given.logits.numpy().tobytes()
    at += 4 * B * T * V
    assert struct.unpack_from("<f", raw, at)[0] == given.loss
    grads = described(raw[at + 4 :], 4)
    assert all(torch.equal(grads[name], given.grads[name]) for name in grads)
    llmc.write_debug_state(tmp_path / "again.bin", MODEL, llmc.read_debug_state(path, MODEL))
    assert (tmp_path / "again.bin").read_bytes() == raw
    path.write_bytes(raw[:-1])
    with pytest.raises(CannotGoOn, match="cut off"):
        llmc.read_debug_state(path, MODEL)
    change(path, 3, MAX_T + 1)
    with pytest.raises(CannotGoOn, match="no batch of made-up"):
        llmc.read_debug_state(path, MODEL)


def tolerances(dtype: str) -> tuple[float, float, dict[str, float]]:
    """test_gpt2.cu's: of logits, of losses, of gradients, to which 0.079 of the gradient's size is added."""
    if dtype == "fp32":
        return 1e-3, 1e-5, {name: 1e-6 for _, name in SIXTEEN}
    each = (0.5, 4e-3, 0.1, 4e-2, 5e-2, 3.5e-2, 2e-2, 3e-2, 5e-2, 3e-2, 3e-2, 3e-2, 2e-2, 1e-2, 0.1, 2e-2)
    return 25.0, 0.05, {name: value for (_, name), value in zip(SIXTEEN, each, strict=True)}


def ten_losses(model: GPT2, weights: dict[str, torch.Tensor], debug: DebugState) -> list[float]:
    """As train_gpt2.py trains them: AdamW, rate 1e-4, betas 0.9 and 0.95, no decay, gradients clipped to 1."""
    net = Network(model)
    net.load(weights)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    losses = []
    for _ in range(10):
        loss = net(debug.x, debug.y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model and its debug state in llm.c's files, and the ten losses."""
    folder = tmp_path_factory.mktemp("llmc")
    model = dataclasses.replace(
        GPT2("small", L=3, NH=3, C=48, max_t=24, v=300),
        recipe=dataclasses.replace(GPT2.recipe, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.0, max_norm=1.0),
    )
    generator = torch.Generator().manual_seed(5)
    weights = {n: p + 0.05 * torch.randn(p.shape, generator=generator) for n, p in init_parameters(model, 0).items()}
    weights["wte"][model.v :] = 0
    rounded = {n: p.bfloat16() for n, p in weights.items()}
    debug = plain_debug_state(model, weights, 2, 16)
    llmc.write_model(folder / "fp32.bin", model, "fp32", weights)
    llmc.write_model(folder / "bf16.bin", model, "bf16", rounded)
    llmc.write_debug_state(folder / "debug_state.bin", model, debug)
    return folder, model, ten_losses(model, weights, debug)


def disagreements(folder: Path, model: GPT2, expected: list[float], dtype: str, lr: float = 1e-4) -> list[str]:
    """What test_gpt2.cu would print of ten steps with our kernels for CPUs, from the folder's files."""
    debug = llmc.read_debug_state(folder / "debug_state.bin", model)
    _, found, weights = llmc.read_model(folder / f"{dtype}.bin")
    modules = {v.layer: v.load() for v in discover() if v.name == "cpu.naive"}
    B, T = debug.x.shape
    step = Step(program(model, B, T, found), {id: modules[id.layer] for id in step_calls(model, B, T, found)})
    step.load(weights)
    of_logits, of_loss, of_grads = tolerances(dtype)
    wrong = []
    logits = step.logits(debug.x).float()[..., : model.v]
    if (logits - debug.logits).abs().max() >= of_logits:
        wrong.append("logits")
    for number, want in enumerate(expected):
        loss, _ = step.run([(debug.x, debug.y)], lr)
        if number == 0:
            for name, want_grad in debug.grads.items():
                key = ".".join(["h{}", *name.split(".")[1:]]) if name.startswith("h") else name
                allowed = of_grads[key] + 0.079 * want_grad.abs()
                if ((step.memory.grads[name].float() - want_grad).abs() > allowed).any():
                    wrong.append(f"gradient of {name}")
        if abs(round(loss, 6) - want) >= of_loss:
            wrong.append(f"loss {number + 1}: {loss} {want}")
    return wrong


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_ten_steps_over_one_batch_as_llmc_tests_them(start, dtype):
    folder, model, expected = start
    assert expected[-1] < expected[0] - 0.01  # it learns
    assert disagreements(folder, model, expected, dtype) == []


def test_another_rate_or_another_weight_is_told(start, tmp_path):
    folder, model, expected = start
    assert any(line.startswith("loss 10") for line in disagreements(folder, model, expected, "fp32", lr=2e-4))
    _, _, weights = llmc.read_model(folder / "fp32.bin")
    weights["h1.qkv.weight"][0, 0] += 1
    llmc.write_model(tmp_path / "fp32.bin", model, "fp32", weights)
    (tmp_path / "debug_state.bin").write_bytes((folder / "debug_state.bin").read_bytes())
    told = disagreements(tmp_path, model, expected, "fp32")
    assert "logits" in told and any(line.startswith("gradient") for line in told)
