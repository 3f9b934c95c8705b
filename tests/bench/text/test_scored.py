"""llama2.c's tokenizer: its merges as run.c makes them, bytes where a character is no piece, and its file."""

import random
import struct

import pytest

from bench.cli import CannotGoOn
from bench.text import corpus, decoding
from bench.text.decoding import encoding_of
from bench.text.scored import Scored, of_bytes, of_pieces, read_tokenizer, write_tokenizer
from bench.text.shards import open_shard
from bench.text.tokenizer import DataError, llama_bytes

WORDS = [" once", "on", "ce", " o", "nc", "e ", " t", "im", "me", "time", "  ", "aa", "aaa", "é", "ée"]


def vocabulary(seed: int = 0) -> Scored:
    """Bytes, characters and joins of them, some without a way to them, scored at random with many ties."""
    draw = random.Random(seed)
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256))]
    pieces += [c.encode() for c in " oncetima☃"] + [w.encode() for w in WORDS]
    drawn = ("".join(draw.choices("once tima", k=draw.randint(2, 4))).encode() for _ in range(80))
    pieces += [p for p in dict.fromkeys(drawn) if p not in pieces]
    return of_pieces("made up", pieces, [draw.choice([-1.0, -2.5, -3.1, -4.0, -1e10]) for _ in pieces])


def as_run_c(given: Scored, text: str) -> list[int]:
    """Its `encode` as it is written: the whole text is searched again for each merge."""
    ids = []
    for character in " " + text:
        raw = character.encode()
        ids += [given.pieces.index(raw)] if raw in given.pieces else [b + 3 for b in raw]
    while True:
        best = (-1e10, -1, -1)
        for at in range(len(ids) - 1):
            joined = given.pieces[ids[at]] + given.pieces[ids[at + 1]]
            if joined in given.pieces:
                i = given.pieces.index(joined)
                if given.scores[i] > best[0]:
                    best = given.scores[i], i, at
        if best[2] < 0:
            return ids
        ids[best[2] : best[2] + 2] = [best[1]]


@pytest.mark.parametrize("seed", range(4))
def test_text_is_merged_as_run_c_does_and_comes_back(seed):
    given, draw = vocabulary(seed), random.Random(seed)
    merged = 0
    for length in [0, 1, 2, 3, *range(4, 60, 5)]:
        text = "".join(draw.choices("once tima  é☃𝄞\n", k=length))
        found = given.encode(text)
        assert found == (as_run_c(given, text) if text else [])
        assert given.decode([1, *found, 2]) == text
        merged += sum(i > 258 and len(given.pieces[i].decode()) > 1 for i in found)
    assert merged > 20


def test_ties_go_to_the_left_and_a_score_too_low_never_merges():
    given = of_pieces("t", [b"u", b"s", b"e", b" ", b"a", b"aa", b" a"], [0, 0, 0, 0, 0, -1, -1])
    assert given.encode("aaa") == [6, 5]
    never = of_pieces("t", given.pieces, [0, 0, 0, 0, 0, -1e10, -1e10])
    assert never.encode("aaa") == [3, 4, 4, 4]


def test_a_byte_without_a_token_is_told():
    with pytest.raises(DataError, match="no token for the byte 0x61"):
        of_pieces("t", [b"u", b"s", b"e", b" "], [0] * 4).encode("a")


def test_ids_become_text_whatever_they_are():
    given = vocabulary()
    once = given.ids[b" once"]
    assert given.decode([1, once, once]) == "once once" and given.decode([once]) == " once"
    assert given.decode([1, 0xE2 + 3, 0x98 + 3, 0x83 + 3]) == "☃"
    assert given.decode([0xE2 + 3, once, -1, 10**9]) == "� once��"


def test_bytes_alone_are_llamas_byte_tokens():
    given = of_bytes(300)
    assert given.size == 300 and given.encode("é\n") == [0xC3 + 3, 0xA9 + 3, 0x0A + 3]
    assert given.decode([1, 0x41 + 3]) == "A"
    with pytest.raises(DataError, match="258 tokens are too few"):
        of_bytes(258)


# --- the file ---


def test_a_file_has_llama2_c_s_layout_and_comes_back(tmp_path):
    given, path = vocabulary(), tmp_path / "t.bin"
    write_tokenizer(path, given)
    raw = path.read_bytes()
    (longest,), at = struct.unpack_from("<I", raw), 4
    for piece, score in zip(given.pieces, given.scores, strict=True):
        assert struct.unpack_from("<fI", raw, at) == (score, len(piece)) and raw[at + 8 : at + 8 + len(piece)] == piece
        at += 8 + len(piece)
    assert at == len(raw) and longest == max(map(len, given.pieces))
    found = read_tokenizer(path, given.size)
    assert (found.pieces, found.scores, found.longest) == (given.pieces, given.scores, given.longest)
    with pytest.raises(CannotGoOn, match="it is there, and stays"):
        write_tokenizer(path, given)
    path.write_bytes(struct.pack("<I", 99) + raw[4:])  # another program's longest
    write_tokenizer(tmp_path / "again.bin", read_tokenizer(path))
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()
    with pytest.raises(DataError, match="token 3 is empty"):
        write_tokenizer(tmp_path / "e.bin", of_pieces("e", [b"u", b"s", b"e", b""], [0] * 4))


def refused(path, raw: bytes, match: str | None = None, v: int | None = None) -> None:
    path.write_bytes(raw)
    with pytest.raises(DataError, match=match) as error:
        read_tokenizer(path, v)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damage_is_told(tmp_path):
    path = tmp_path / "t.bin"
    write_tokenizer(path, vocabulary())
    raw = path.read_bytes()
    for size in (0, 3, 4, 11, *random.Random(3).sample(range(12, len(raw)), 20)):
        refused(path, raw[:size], v=vocabulary().size)
    refused(path, raw[:12], "cut off in token 0")
    refused(path, raw[:-1], "cut off in token")
    refused(path, raw + b"\0", "cut off in token")
    refused(path, raw[:4] + struct.pack("<f", float("nan")) + raw[8:], "the score nan")
    refused(path, raw[:8] + struct.pack("<I", 0) + raw[12:], "token 0 has 0 bytes")
    refused(path, raw[:8] + struct.pack("<I", 1 << 31) + raw[12:], "token 0 has 2,147,483,648 bytes")
    refused(path, struct.pack("<I", 3) + raw[4:], "the longest: 3")
    refused(path, struct.pack("<I", 20240328) + raw[4:], "not llama2.c's tokenizer file")
    refused(path, b"once upon a time there was a text", "not llama2.c's tokenizer file")
    refused(path, raw, "and the model has 32,000", v=32000)
    with pytest.raises(DataError, match="a folder, no tokenizer file"):
        read_tokenizer(tmp_path)


# --- shards of its tokens ---


def test_shards_are_made_with_it_and_their_text_comes_back(tmp_path):
    given, text = vocabulary(), "once upon a time\nonce, ☃"
    (tmp_path / "texts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "texts" / name).write_text(text * 40)
    write_tokenizer(tmp_path / "t.bin", given)
    folder, about = corpus.encode(tmp_path / "texts", tmp_path / "shards", tmp_path / "t.bin", 0.1)
    assert about["vocabulary"] == given.size and (folder / "tokenizer.bin").read_bytes() == given.content()
    ids = open_shard(folder / "train.bin", given.size)[:].tolist()
    at = ids.index(1)
    assert ids[:at] == given.encode(text * 40) and ids.count(1) == 1
    decoder = corpus.decoder_beside(folder / "train.bin", "bytes")
    assert decoder and decoder.end_of_text == 1 and decoder.decode([1, *ids[:at]]) == text * 40
    assert decoder.encode("once") == [1, *given.encode("once")]
    assert decoder.fingerprint() == about["tokenizer_sha256"] == encoding_of(tmp_path / "t.bin").fingerprint()
    other = of_pieces("other", given.pieces, [*given.scores[:-1], -7.0])
    assert other.fingerprint() != given.fingerprint()
    decoding.write_tokenizer(tmp_path / "again.bin", decoder)  # as a run does beside its checkpoints
    assert (tmp_path / "again.bin").read_bytes() == given.content()


def test_a_word_goes_on_after_one_space(tmp_path):
    given = vocabulary()
    write_tokenizer(tmp_path / "t.bin", given)
    using = encoding_of(tmp_path / "t.bin")
    assert given.decode(using.going_on("once")) == " once"
    assert llama_bytes().going_on("a") == [0x20 + 3, 0x61 + 3]


def test_more_ids_than_a_shard_can_hold_are_refused(tmp_path):
    write_tokenizer(tmp_path / "t.bin", of_bytes((1 << 16) + 1))
    with pytest.raises(DataError, match="65,537 tokens, and shards have room for 65,536"):
        encoding_of(tmp_path / "t.bin")
