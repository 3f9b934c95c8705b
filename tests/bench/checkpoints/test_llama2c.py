"""llama2.c's model files: a reader that goes by their description alone finds what was written, and damage is told."""

import dataclasses
import random
import struct

import numpy as np
import pytest
import torch

from bench.checkpoints import llama2c
from bench.checkpoints.llama2c import Head, head_of, is_one, read_model, read_quantised, write_model
from bench.cli import CannotGoOn
from reference import q8_quantise
from reference.models.llama2 import SIZES, Network
from tests.bench.checkpoints.llamas import MODEL, OVER_ENDS, UNTIED, equal, weights

BOTH = pytest.mark.parametrize("model", [MODEL, UNTIED], ids=["tied", "untied"])


class RunC:
    """run.c's forward, one token after the other, from a version 0: pointers into one array of floats."""

    def __init__(self, path):
        raw = path.read_bytes()
        self.dim, self.hidden, self.L, self.NH, self.NKV, v, self.S = struct.unpack("<7i", raw[:28])
        floats, at = np.frombuffer(raw[28:], "<f4"), 0
        self.HS = self.dim // self.NH
        self.kv = self.NKV * self.HS

        def take(*shape):
            nonlocal at
            found = floats[at : at + int(np.prod(shape))].reshape(shape)
            at += found.size
            return found

        dim, hidden, L = self.dim, self.hidden, self.L
        self.emb = take(abs(v), dim)
        self.rms_att, self.wq, self.wk = take(L, dim), take(L, dim, dim), take(L, self.kv, dim)
        self.wv, self.wo, self.rms_ffn = take(L, self.kv, dim), take(L, dim, dim), take(L, dim)
        self.w1, self.w2, self.w3 = take(L, hidden, dim), take(L, dim, hidden), take(L, hidden, dim)
        self.rms_final = take(dim)
        self.cos, self.sin = take(self.S, self.HS // 2), take(self.S, self.HS // 2)
        self.wcls = take(-v, dim) if v < 0 else self.emb
        assert at == floats.size
        self.keys, self.values = np.zeros((2, L, self.S, self.NKV, self.HS), "f4")

    def forward(self, token: int, pos: int) -> np.ndarray:
        x = self.emb[token].copy()
        for layer in range(self.L):
            xb = rms(x) * self.rms_att[layer]
            q, k = self.wq[layer] @ xb, self.wk[layer] @ xb
            for vector in (q, k):
                for i in range(0, len(vector), 2):
                    angle = pos / 10000 ** (i % self.HS / self.HS)
                    a, b = vector[i], vector[i + 1]
                    vector[i], vector[i + 1] = (
                        a * np.cos(angle) - b * np.sin(angle),
                        a * np.sin(angle) + b * np.cos(angle),
                    )
            self.keys[layer, pos] = k.reshape(self.NKV, -1)
            self.values[layer, pos] = (self.wv[layer] @ xb).reshape(self.NKV, -1)
            heads = []
            for h, query in enumerate(q.reshape(self.NH, -1)):
                kv = h // (self.NH // self.NKV)
                scores = self.keys[layer, : pos + 1, kv] @ query / np.sqrt(self.HS)
                chances = np.exp(scores - scores.max())
                heads.append(chances @ self.values[layer, : pos + 1, kv] / chances.sum())
            x += self.wo[layer] @ np.concatenate(heads)
            xb = rms(x) * self.rms_ffn[layer]
            gate = self.w1[layer] @ xb
            x += self.w2[layer] @ (gate / (1 + np.exp(-gate)) * (self.w3[layer] @ xb))
        return self.wcls @ (rms(x) * self.rms_final)


def rms(x):
    return x / np.sqrt((x * x).mean() + 1e-5)


def export_v2(path, model, named, group):
    """A version 2 as export.py makes one: groups along the memory, wherever rows end."""
    raw = struct.pack("<Ii7iBi", 0x616B3432, 2, 64, 96, 2, 4, 2, 300, 16, 1, group).ljust(256, b"\0")
    HS, kv = 16, 32
    qkv, gate_up = ([named[f"h{i}.{n}.weight"] for i in range(model.L)] for n in ("qkv", "gate_up"))
    for name in ("norm1", "norm2"):
        raw += b"".join(named[f"h{i}.{name}.weight"].numpy().tobytes() for i in range(model.L))
    raw += named["norm.weight"].numpy().tobytes()
    matrices = [
        named["wte"][:300],
        *(w[:64] for w in qkv),
        *(w[64 : 64 + kv] for w in qkv),
        *(w[64 + kv :] for w in qkv),
    ]
    matrices += [named[f"h{i}.attproj.weight"] for i in range(model.L)]
    matrices += [
        *(w[:96] for w in gate_up),
        *(named[f"h{i}.down.weight"] for i in range(model.L)),
        *(w[96:] for w in gate_up),
    ]
    stands_for = []
    for matrix in matrices:
        flat = matrix.reshape(-1, group)
        scale = flat.abs().amax(1) / 127
        values = (flat / scale[:, None]).round()
        raw += values.to(torch.int8).numpy().tobytes() + scale.numpy().tobytes()
        stands_for.append((values * scale[:, None]).view(matrix.shape))
    assert kv == HS * model.NKV
    path.write_bytes(raw)
    return stands_for


# --- whole ones ---


@BOTH
def test_a_reader_that_goes_by_run_c_computes_our_logits(tmp_path, model):
    given = weights(model)
    write_model(tmp_path / "m.bin", model, given)
    theirs, ours = RunC(tmp_path / "m.bin"), Network(model)
    ours.load(given)
    ids = [1]
    with torch.no_grad():
        for pos in range(model.max_t - 1):
            logits = ours(torch.tensor([ids]))[0, -1, : model.v].numpy()
            found = theirs.forward(ids[-1], pos)
            assert np.abs(found - logits).max() < 1e-4 * np.abs(logits).max()
            ids.append(int(found.argmax()))
            assert ids[-1] == int(logits.argmax())
    assert len(set(ids)) > 3
    assert np.abs(theirs.cos - ours.cos.numpy()).max() == np.abs(theirs.sin - ours.sin.numpy()).max() == 0


@BOTH
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_comes_back(tmp_path, model, version, dtype):
    given = weights(model, dtype)
    head = write_model(tmp_path / "m.bin", model, given, version)
    assert (tmp_path / "m.bin").stat().st_size == head.bytes == head_of(tmp_path / "m.bin").bytes
    found, read = read_model(tmp_path / "m.bin")
    assert dataclasses.replace(found, name=model.name) == model and equal(read, given)
    write_model(tmp_path / "again.bin", found, read, version)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "m.bin").read_bytes()


def test_version_1_has_its_layout(tmp_path):
    given = weights(UNTIED)
    write_model(tmp_path / "m.bin", UNTIED, given, 1)
    raw = (tmp_path / "m.bin").read_bytes()
    assert raw[:4] == b"24ka" and struct.unpack_from("<i7iB", raw, 4) == (1, 32, 64, 2, 2, 1, 300, 16, 0)
    assert not any(raw[37:256])
    floats = torch.from_numpy(np.frombuffer(raw[256:], "<f4").copy())
    assert torch.equal(floats[32:64], given["h1.norm1.weight"]) and torch.equal(floats[128:160], given["norm.weight"])
    assert torch.equal(floats[160 : 160 + 300 * 32].view(300, 32), given["wte"][:300])
    assert torch.equal(floats[-300 * 32 :].view(300, 32), given["head.weight"][:300])


@BOTH
def test_version_2_stands_for_values_within_half_a_step_and_its_int8_are_the_same(tmp_path, model):
    given = weights(model)
    given["h0.attproj.weight"][3] = 0
    head = write_model(tmp_path / "m.bin", model, given, 2)
    assert head.group == llama2c.group_for(model) and model.C % head.group == model.H % head.group == 0
    found, read = read_model(tmp_path / "m.bin")
    again, norms, matrices, group = read_quantised(tmp_path / "m.bin")
    assert found == again == dataclasses.replace(model, name=found.name) and group == head.group
    assert norms.keys() | matrices.keys() == given.keys() == read.keys() and not norms.keys() & matrices.keys()
    for name, (values, scales) in matrices.items():
        assert values.dtype == torch.int8 and values.shape == given[name].shape
        wide = scales.repeat_interleave(group, 1)
        assert torch.equal(values.float() * wide, read[name])
        assert ((read[name] - given[name]).abs() <= wide * 0.5001).all() and values.abs().amax() == 127
    assert all(torch.equal(norms[name], given[name]) and torch.equal(read[name], given[name]) for name in norms)
    assert not read["h0.attproj.weight"][3].any()
    assert (matrices["h0.attproj.weight"][1][3] == 1).all()  # as in Q8_0 elsewhere here: no division by zero


def test_a_file_is_quantised_as_the_layer_does_it():
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(5))
    x[2, 32:64] = 0
    values, scales = llama2c.quantised(x, 32)
    wanted = q8_quantise.forward(x, 32)
    assert torch.equal(values, wanted["q"]) and torch.equal(scales.view(7, 3), wanted["scales"])


def test_groups_that_run_over_the_ends_of_rows_are_read_as_what_they_say(tmp_path):
    path, given = tmp_path / "m.bin", weights(OVER_ENDS)
    stands_for = export_v2(path, OVER_ENDS, given, 64)
    model, read = read_model(path)
    assert model == dataclasses.replace(OVER_ENDS, name=model.name) and head_of(path).group == 64
    emb, downs = stands_for[0], stands_for[-4:-2]
    assert torch.equal(read["wte"][:300], emb)
    assert all(torch.equal(read[f"h{i}.down.weight"], downs[i]) for i in range(2))
    assert torch.equal(read["h1.gate_up.weight"], torch.cat([stands_for[-5], stands_for[-1]]))
    assert torch.equal(read["h1.qkv.weight"], torch.cat(stands_for[2:8:2]))
    _, _, matrices, group = read_quantised(path)
    assert group == 32
    for name, (values, scales) in matrices.items():
        assert torch.equal(values.float() * scales.repeat_interleave(group, 1), read[name])
    # what is written has no such groups
    assert write_model(tmp_path / "ours.bin", model, given, 2, 64).group == 32
    with pytest.raises(CannotGoOn, match=r"version 0 of llama2\.c's model is not quantised"):
        write_model(tmp_path / "v0.bin", model, given)
        read_quantised(tmp_path / "v0.bin")


@pytest.mark.parametrize(
    ("name", "size", "group"),
    [("llama2-15m", 60_816_028, 32), ("llama2-42m", 167_020_572, 32), ("llama2-110m", 438_381_596, 64)],
)
def test_the_named_sizes_are_as_large_as_llama2_cs_files(tmp_path, name, size, group):
    model = next(known for known in SIZES if known.name == name)
    assert Head(0, model).bytes == size and llama2c.group_for(model) == group
    with (tmp_path / "m.bin").open("wb") as file:
        file.write(llama2c._header(Head(0, model)))
        file.truncate(size)  # no blocks are taken
    assert head_of(tmp_path / "m.bin") == Head(0, model)


# --- others ---


@pytest.fixture(scope="module", params=[0, 1, 2])
def whole(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "m.bin"
    write_model(path, UNTIED, weights(UNTIED), request.param)
    return path.read_bytes(), request.param


def refused(path, raw: bytes, match: str | None = None) -> str:
    path.write_bytes(raw)
    with pytest.raises(CannotGoOn, match=match) as error:
        read_model(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value)


def test_one_that_is_cut_off_or_longer_is_told(tmp_path, whole):
    raw, _ = whole
    for size in (0, 3, 27, 28, 255, 256, 300, *random.Random(1).sample(range(300, len(raw)), 9), len(raw) - 1):
        refused(tmp_path / "m.bin", raw[:size], "cut off|are no model")
    assert "1 bytes more" in refused(tmp_path / "m.bin", raw + b"\0")


def test_every_damaged_size_is_told_before_memory_is_taken(tmp_path, whole):
    raw, version = whole
    start = 8 if version else 0
    for at in range(start, start + 28, 4):
        for value in (0, -7, 1, 3, 1 << 22, 1 << 30, -(1 << 31)):
            damaged = raw[:at] + struct.pack("<i", value) + raw[at + 4 :]
            positions = version and at == start + 24 and value in range(1, 1 << 24)  # any number of them is as large
            if damaged != raw and not positions:
                refused(tmp_path / "m.bin", damaged)
    if version:
        refused(tmp_path / "m.bin", raw[:4] + b"\3" + raw[5:], "version 3")
        refused(tmp_path / "m.bin", raw[:36] + b"\2" + raw[37:], "header is damaged")
        refused(tmp_path / "m.bin", raw[:36] + b"\1" + raw[37:], "bytes more than")  # a tied head is not there
        refused(tmp_path / "m.bin", b"24ka" + raw[:40])


@pytest.mark.parametrize(
    ("at", "raw", "says"),
    [
        (37, struct.pack("<i", 0), "groups of 0"),
        (37, struct.pack("<i", -32), "groups of -32"),
        (37, struct.pack("<i", 7), "groups of 7 do not divide"),
        (37, struct.pack("<i", 1 << 30), "groups of 1073741824"),
        (37, struct.pack("<i", 16), "cut off"),
        (256 + 4 * 5 * 32, b"\x80", "a value of -128"),
        (256 + 4 * 5 * 32 + 300 * 32, struct.pack("<f", float("inf")), "a scale that is not finite"),
    ],
)
def test_damaged_groups_are_told(tmp_path, at, raw, says):
    write_model(tmp_path / "good.bin", UNTIED, weights(UNTIED), 2)
    good = (tmp_path / "good.bin").read_bytes()
    refused(tmp_path / "m.bin", good[:at] + raw + good[at + len(raw) :], says)


def test_foreign_files_are_no_such_files(tmp_path):
    path = tmp_path / "m.bin"
    draw = random.Random(2)
    for raw in (b"", b"once upon a time, there was a model of language", b"\x80\x02}q\x00." * 9, bytes(300)):
        refused(path, raw)
        assert not is_one(path)
    for _ in range(50):
        refused(path, draw.randbytes(400))
    with pytest.raises(CannotGoOn, match="no such file"):
        read_model(tmp_path / "gone.bin")
    with pytest.raises(CannotGoOn, match="a folder, no file"):
        read_model(tmp_path)
    assert not is_one(tmp_path)


def test_nothing_is_overwritten_and_nothing_is_left_of_what_fails(tmp_path):
    (tmp_path / "m.bin").write_bytes(b"mine")
    with pytest.raises(CannotGoOn, match="it is there, and stays"):
        write_model(tmp_path / "m.bin", MODEL, weights(MODEL))
    broken = weights(MODEL)
    broken["h1.down.weight"][3, 4] = float("nan")
    with pytest.raises(CannotGoOn, match="w2 of made-up-llama is not finite"):
        write_model(tmp_path / "q.bin", MODEL, broken, 2)
    with pytest.raises(CannotGoOn, match="theta 10000, other by 500000"):
        write_model(tmp_path / "t.bin", dataclasses.replace(MODEL, name="other", theta=500000.0), weights(MODEL))
    with pytest.raises(CannotGoOn, match="norms add 1e-05, other's 1e-06"):
        write_model(tmp_path / "e.bin", dataclasses.replace(MODEL, name="other", eps=1e-6), weights(MODEL))
    assert [p.name for p in tmp_path.iterdir()] == ["m.bin"] and (tmp_path / "m.bin").read_bytes() == b"mine"
