"""llama.cpp's file: as its layout says byte for byte, read back as it was written, and refused where it is damaged."""

import dataclasses
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.checkpoints import gguf
from bench.checkpoints.gguf import read_model, tokenizer_of, write_model
from bench.cli import CannotGoOn
from bench.core.case import DTYPES
from bench.text import scored
from tests.bench.checkpoints.llamas import MODEL, OVER_ENDS, UNTIED, equal, weights

MODELS = [MODEL, UNTIED, dataclasses.replace(MODEL, theta=5e5, eps=1e-6)]


def pieces(v: int) -> scored.Scored:
    """Letters and a space, and words of them, as sentencepiece has them."""
    first = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256))]
    more = [b" ", b"a", b"b", "é".encode(), b" a", b"ab", b" ab"]
    rest = [b"<unused%d>" % i for i in range(v - len(first) - len(more))]
    scores = [0.0] * len(first) + [-1.0 - i for i in range(len(more))] + [2 * scored.NEVER] * len(rest)
    return scored.of_pieces("made up", [*first, *more, *rest], scores)


@pytest.mark.parametrize("model", MODELS, ids=["tied", "untied", "theta"])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
def test_a_model_comes_back(tmp_path, model, kind):
    given = weights(model, DTYPES[kind])
    write_model(tmp_path / "m.gguf", model, given, kind, pieces(model.v))
    found, read = read_model(tmp_path / "m.gguf")
    assert dataclasses.replace(found, name=model.name) == model and equal(read, given)
    said = tokenizer_of(tmp_path / "m.gguf", found)
    assert said is not None and (said.pieces, said.scores) == (pieces(model.v).pieces, pieces(model.v).scores)


def test_q8_0_is_half_a_step_off_at_most(tmp_path):
    """Groups are 32 values of a row; rows that they do not divide, and norms, are as they were."""
    model = OVER_ENDS  # rows of 64 and 96
    given = weights(model)
    write_model(tmp_path / "m.gguf", model, given, "q8_0")
    _, read = read_model(tmp_path / "m.gguf")
    for name, wanted in given.items():
        if wanted.dim() == 1:
            assert torch.equal(read[name], wanted)
            continue
        groups, error = wanted.view(-1, 32), (read[name] - wanted).view(-1, 32)
        step = groups.abs().amax(1, keepdim=True) / 127
        assert (error.abs() <= 0.5 * step + 128 * step * 2**-11).all() and error.abs().max() > 0, name
    narrow = dataclasses.replace(model, H=40)
    write_model(tmp_path / "n.gguf", narrow, weights(narrow), "q8_0")
    down = read_model(tmp_path / "n.gguf")[1]["h0.down.weight"]
    assert torch.equal(down, weights(narrow)["h0.down.weight"])


def test_a_block_is_a_scale_and_its_values():
    """ggml's rounding: to nearest, and halves away from zero."""
    x = np.zeros(64, np.float32)
    x[:5] = 127, 0.5, -0.5, 1.5, -63.4
    blocks = gguf.quantised(x)
    assert blocks.itemsize == 34 and blocks["d"].tolist() == [1, 0]
    assert blocks["q"][0, :5].tolist() == [127, 1, -1, 2, -63] and not blocks["q"][1].any()
    assert gguf.encoded(torch.from_numpy(x), "q8_0") == struct.pack("<e", 1) + bytes([127, 1, 255, 2, 193]) + bytes(
        27 + 34
    )


def test_the_bytes_are_those_of_the_layout(tmp_path):
    """Read with nothing but the layout's own words."""
    path = tmp_path / "m.gguf"
    write_model(path, MODEL, weights(MODEL), "bf16", pieces(MODEL.v))
    raw, at = path.read_bytes(), 24

    def take(form):
        nonlocal at
        found = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return found if len(found) > 1 else found[0]

    def text():
        return bytes(take(f"{take('Q')}s"))

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            of, count = take("IQ")
            return [value(of) for _ in range(count)]
        return take({4: "I", 5: "i", 6: "f", 7: "?"}[kind])

    assert raw[:8] == b"GGUF\3\0\0\0"
    tensors, entries = struct.unpack_from("<QQ", raw, 8)
    said = {}
    for _ in range(entries):
        key = text()
        said[key.decode()] = value(take("I"))
    assert said["general.architecture"] == b"llama" and said["general.file_type"] == 32
    assert said["llama.attention.head_count"] == 4 and said["llama.attention.head_count_kv"] == 2
    assert said["llama.rope.dimension_count"] == 8 and said["llama.context_length"] == 16
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert tokens[:4] == [b"<unk>", b"<s>", b"</s>", b"<0x00>"] and "▁ab".encode() in tokens
    assert kinds[:4] == [2, 3, 3, 6] and kinds[tokens.index("▁ab".encode())] == 1 and kinds[-1] == 5
    assert len(tokens) == len(kinds) == len(said["tokenizer.ggml.scores"]) == MODEL.v
    places = {}
    for _ in range(tensors):
        name, axes = text().decode(), take("I")
        *sizes, kind, offset = take(f"{axes}QIQ")
        places[name] = tuple(sizes), kind, offset
    begin = -(-at // 32) * 32
    sizes, kind, offset = places["blk.1.attn_k.weight"]
    assert (sizes, kind, offset % 32) == ((32, 16), 30, 0)
    found = torch.frombuffer(bytearray(raw[begin + offset :]), dtype=torch.bfloat16, count=32 * 16)
    assert torch.equal(found.view(16, 32), weights(MODEL)["h1.qkv.weight"][32:48].bfloat16())
    assert places["output_norm.weight"][:2] == ((32,), 0) and "output.weight" not in places


def test_a_space_without_a_piece_is_named_as_llama_cpp_names_it(tmp_path):
    """It writes a space so before it looks for pieces: the byte's own token would never be found."""
    write_model(tmp_path / "m.gguf", MODEL, weights(MODEL), "fp32", scored.of_bytes(MODEL.v))
    with (tmp_path / "m.gguf").open("rb") as file:
        said = gguf._head(tmp_path / "m.gguf", file)[0]
    assert said["tokenizer.ggml.tokens"][3 + 32] == "▁".encode() and not said["tokenizer.ggml.add_space_prefix"]
    assert (found := tokenizer_of(tmp_path / "m.gguf", MODEL)) and found.pieces == scored.of_bytes(MODEL.v).pieces
    write_model(tmp_path / "none.gguf", MODEL, weights(MODEL))
    assert tokenizer_of(tmp_path / "none.gguf", MODEL) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_model(path, MODEL, weights(MODEL), "bf16", pieces(MODEL.v))
    return path.read_bytes()


def damaged(path: Path, raw: bytes) -> str:
    """What reading it says, or ""."""
    path.write_bytes(raw)
    try:
        found, _ = read_model(path)
        tokenizer_of(path, found)
    except CannotGoOn as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 400
        return str(error)
    return ""


def test_a_file_that_is_cut_off_is_refused_wherever(tmp_path, whole):
    draw = random.Random(0)
    for at in [0, 3, 4, 7, 23, 24, len(whole) - 33, *(draw.randrange(len(whole) - 32) for _ in range(60))]:
        assert damaged(tmp_path / "m.gguf", whole[:at]), at


def test_flipped_bits_are_refused_or_harmless(tmp_path, whole):
    """One line at most, whatever is wrong: no other error, and no memory asked for that is not there."""
    draw, refused = random.Random(1), 0
    for _ in range(200):
        raw = bytearray(whole)
        for _ in range(draw.choice((1, 4))):
            raw[draw.randrange(14_000)] ^= 1 << draw.randrange(8)  # most of it before the tensors
        refused += bool(damaged(tmp_path / "m.gguf", bytes(raw)))
    assert refused > 20


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"GGUF\3", b"GGUF\1", "version 1 of GGUF"),
        (b"GGUF\3", b"GGML\3", "no GGUF"),
        (struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"gemma", "architecture is 'gemma'"),
        (b"llama.block_count", b"llama.block_coun7", "no sizes of a Llama"),
        (b"blk.1.attn_k.weight", b"blk.1.attn_k.wei8ht", "blk.1.attn_k.weight is missing"),
        (struct.pack("<IQQI", 2, 32, 16, 30), struct.pack("<IQQI", 2, 32, 16, 14), "ggml's type 14"),
        (struct.pack("<IQQI", 2, 32, 16, 30), struct.pack("<IQQI", 2, 16, 32, 30), "is (16, 32)"),
        (b"\x02\0\0\0\x04\0\0\0\x02\0\0\0", b"\x02\0\0\0\x04\0\0\0\x02\0\0\0", ""),
    ],
)
def test_what_is_another_file_is_told(tmp_path, whole, old, new, says):
    assert old in whole or not says
    assert says in damaged(tmp_path / "m.gguf", whole.replace(old, new, 1))


def test_where_no_folder_can_be_made_the_reason_is_told(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(CannotGoOn, match=r"m.gguf: .*(directory|exists)"):
        write_model(tmp_path / "file" / "m.gguf", MODEL, weights(MODEL))


def test_what_has_no_room_is_refused_and_nothing_is_left(tmp_path):
    given = weights(MODEL)
    given["h1.down.weight"][3, 4] = 1e6
    with pytest.raises(CannotGoOn, match=r"h1.down.weight of made-up-llama has values that fp16 cannot say"):
        write_model(tmp_path / "m.gguf", MODEL, given, "fp16")
    given["h1.down.weight"][3, 4] = float("nan")
    with pytest.raises(CannotGoOn, match="cannot say"):
        write_model(tmp_path / "m.gguf", MODEL, given, "fp32")
    with pytest.raises(CannotGoOn, match="a tokenizer of 301 tokens, and made-up-llama has 300"):
        write_model(tmp_path / "m.gguf", MODEL, weights(MODEL), "fp32", scored.of_bytes(301))
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", gguf.KINDS)
def test_their_own_reader_reads_it(tmp_path, kind):
    """The package gguf, where it is installed: names, sizes, values after its own dequantisation."""
    theirs = pytest.importorskip("gguf")
    given = weights(OVER_ENDS)
    write_model(tmp_path / "m.gguf", OVER_ENDS, given, kind, pieces(OVER_ENDS.v))
    reader = theirs.GGUFReader(tmp_path / "m.gguf")
    found = {t.name: theirs.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    read = read_model(tmp_path / "m.gguf")[1]
    for name, ours, first, rows in gguf.places(OVER_ENDS):
        wanted = read[ours].view(-1, gguf.row_of(OVER_ENDS, ours))[first : first + rows]
        assert np.array_equal(found[name].reshape(wanted.shape), wanted.numpy()), name
    if kind == "q8_0":
        matrix = given["h0.qkv.weight"][:64].numpy()
        block = theirs.quantize(matrix, theirs.GGMLQuantizationType.Q8_0)
        assert block.tobytes() == gguf.encoded(given["h0.qkv.weight"][:64], kind)
    assert reader.fields["llama.context_length"].contents() == OVER_ENDS.max_t


@pytest.mark.parametrize("kind", gguf.KINDS)
def test_a_step_reads_the_files_tensors(tmp_path, kind):
    """All of them, but for an embedding that is not the head: of that a row for each sequence."""
    for model in (MODEL, UNTIED):
        path = tmp_path / f"{model.name}.gguf"
        write_model(path, model, weights(model), kind)
        with path.open("rb") as file:
            found = gguf._head(path, file)[1]
        whole = path.stat().st_size - min(place.start for place in found.values())
        whole -= 0 if model.tied else gguf.bytes_of(kind, (model.v - 3) * model.C)
        assert 0 <= whole - gguf.bytes_read(model, kind, 3) < gguf.ALIGNMENT * len(found)
