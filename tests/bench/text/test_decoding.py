"""llm.c's tokenizer file, and text from ids with the tokenizer that the data were made with."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from bench.text import corpus, shards, tokenizer
from bench.text.decoding import Decoder, decoder_of, encoding_of, read_tokenizer, write_tokenizer
from bench.text.tokenizer import DataError, Tokenizer

TEXT = "naïve ☃ — words and more words\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-tiktoken"))


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """Bytes, and a few tokens that merges made."""
    return Tokenizer.of_ranks("small", tokenizer.train_bpe([TEXT * 9], 300))


def c_program_s(path: Path) -> tuple[list[bytes], int]:
    """Tokens and the id of <|endoftext|> as a reader finds them that goes by the description of the format alone."""
    with path.open("rb") as file:
        header = struct.unpack("<256I", file.read(1024))
        assert header[0] == 20240328 and header[1] == 2 and not any(header[4:])
        tokens = []
        for _ in range(header[2]):
            (length,) = file.read(1)
            assert length > 0
            tokens.append(file.read(length))
        assert file.read() == b""
    return tokens, header[3]


def test_a_written_file_reads_back_and_has_llm_c_s_layout(tmp_path, small):
    decoder = decoder_of(small)
    write_tokenizer(tmp_path / "t.bin", decoder)
    back = read_tokenizer(tmp_path / "t.bin")
    assert c_program_s(tmp_path / "t.bin") == (list(decoder.tokens), 50256)
    assert (back.tokens, back.end_of_text) == (decoder.tokens, 50256) and back.tokens[50256] == b"<|endoftext|>"
    write_tokenizer(tmp_path / "again.bin", back)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "t.bin").read_bytes()


def test_version_1_is_read_and_written_as_it_was(tmp_path, small):
    tokens = decoder_of(small).tokens
    write_tokenizer(tmp_path / "t.bin", Decoder("old", tokens, version=1))
    raw = (tmp_path / "t.bin").read_bytes()
    assert struct.unpack("<4i", raw[:16]) == (20240328, 1, 50257, 0)
    back = read_tokenizer(tmp_path / "t.bin")
    assert back.end_of_text == 50256
    write_tokenizer(tmp_path / "again.bin", back)
    assert (tmp_path / "again.bin").read_bytes() == raw


def file_of(*head: int, body: bytes = b"") -> bytes:
    return np.array([*head, *[0] * (256 - len(head))], "<i4").tobytes() + body


DAMAGE = {
    "not there": (None, "no such tokenizer file"),
    "empty": (b"", "not llm.c's tokenizer file"),
    "another file": (file_of(20240520, 1, 1, body=b"\1a"), "not llm.c's tokenizer file"),
    "version": (file_of(20240328, 3, 1, body=b"\1a"), "version 3"),
    "end of text": (file_of(20240328, 2, 1, 1, body=b"\1a"), "said to be 1"),
    "version 1, few": (file_of(20240328, 1, 1, body=b"\1a"), "said to be 50256"),
    "cut off": (file_of(20240328, 2, 2, 0, body=b"\1a\3bc"), "promises 2 tokens, the file holds 1"),
    "cut before": (file_of(20240328, 2, 2, 0, body=b"\1a"), "promises 2 tokens, the file holds 1"),
    "no bytes": (file_of(20240328, 2, 2, 0, body=b"\1a\0\1b"), "the file holds 1"),
    "longer": (file_of(20240328, 2, 1, 0, body=b"\1a\1b"), "holds 1 and 2 bytes more"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named(tmp_path, kind):
    content, says = DAMAGE[kind]
    path = tmp_path / "t.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("token", [b"", b"x" * 256])
def test_a_token_the_format_has_no_room_for_is_refused(tmp_path, token):
    with pytest.raises(DataError, match=f"token 1 has {len(token)} bytes"):
        write_tokenizer(tmp_path / "t.bin", Decoder("odd", (b"a", token), 0))
    assert not (tmp_path / "t.bin").exists()


# ---- text ------------------------------------------------------------------------------------------------------------


def test_text_and_back(small):
    decoder = decoder_of(small)
    ids = small.encoding.encode_ordinary(TEXT)
    assert decoder.decode(ids) == TEXT
    assert decoder.decode([*ids, 50256]) == TEXT + "<|endoftext|>"
    assert decoder.fingerprint() == small.fingerprint()


def test_what_is_no_text_is_shown_and_stops_nothing(small):
    """An untrained model's sample holds half characters, ids that no token has, and a padded model's further rows."""
    decoder = decoder_of(small)
    half = "☃".encode()[0]
    assert decoder.decode([decoder.tokens.index(bytes([half]))]) == "�"
    assert decoder.decode([50000]) == "<|unassigned|>"
    assert decoder.decode([50257, 50303, -1]) == "���"
    assert decoder.decode([]) == ""


def test_the_encoding_that_a_file_implies(tmp_path, small):
    write_tokenizer(tmp_path / "t.bin", decoder_of(small))
    using = encoding_of(tmp_path / "t.bin")
    assert using.encoding.encode_ordinary(TEXT) == small.encoding.encode_ordinary(TEXT)
    assert using.fingerprint() == small.fingerprint() and corpus.tokenizer(tmp_path / "t.bin").name == using.name
    write_tokenizer(tmp_path / "words.bin", Decoder("no bytes", (b"word", b"<|endoftext|>"), 1))
    with pytest.raises(DataError, match=r"words\.bin: ranks have gaps or a byte is missing"):
        encoding_of(tmp_path / "words.bin")


# ---- which tokenizer it was --------------------------------------------------------------------------------------


def made(folder: Path, using: Tokenizer) -> Path:
    corpus.write_shards(corpus.Corpus("x", [TEXT * 20]), using, folder, 0.1)
    return folder / "train.bin"


def test_shards_come_with_what_decodes_them(tmp_path, small):
    shard = made(tmp_path / "data", small)
    beside = corpus.decoder_beside(shard)
    assert beside is not None and beside == corpus.decoder_beside(shard.parent)
    ids = np.fromfile(shard, "<u2", offset=1024).tolist()
    assert beside.decode(ids) == (TEXT * 20)[: len(beside.decode(ids))] and len(ids) > 100
    about = json.loads((shard.parent / "about.json").read_text())
    assert about["tokenizer_sha256"] == beside.fingerprint()


def test_llm_c_s_own_name_is_found_too(tmp_path, small):
    write_tokenizer(tmp_path / "gpt2_tokenizer.bin", decoder_of(small))
    beside = corpus.decoder_beside(tmp_path / "any.bin")
    assert beside is not None and beside.tokens == decoder_of(small).tokens


def test_shards_without_the_file_are_decoded_by_the_fingerprint(tmp_path, small):
    """Those that were encoded before, with a vocabulary that was trained into the cache; and with none other."""
    shard = made(tmp_path / "data", small)
    (shard.parent / "tokenizer.bin").unlink()
    assert corpus.decoder_beside(shard) is None
    tokenizer.put(corpus.cache_dir() / "bpe-0.tiktoken", tokenizer.rank_lines({bytes([b]): b for b in range(256)}))
    assert corpus.decoder_beside(shard) is None, "another tokenizer's text would look like text"
    tokenizer.put(corpus.cache_dir() / "bpe-1.tiktoken", tokenizer.rank_lines(small.ranks()))
    beside = corpus.decoder_beside(shard)
    assert beside is not None and beside.tokens == decoder_of(small).tokens


def test_shards_that_say_nothing_are_gpt_2_s_where_its_vocabulary_is_at_hand(tmp_path, small, monkeypatch):
    assert corpus.decoder_beside(tmp_path / "train.bin") is None
    monkeypatch.setattr(corpus, "gpt2_from_tiktoken_cache", lambda: small)
    beside = corpus.decoder_beside(tmp_path / "train.bin")
    assert beside is not None and "assumed" in beside.name
    (tmp_path / "about.json").write_text('{"tokenizer_sha256": "another"}')
    assert corpus.decoder_beside(tmp_path / "train.bin") is None


def test_a_vocabulary_with_long_tokens_still_makes_shards(tmp_path):
    """The format has no room for a token of 256 bytes; about.json then is all that says which it was."""
    ranks = {bytes([b]): b for b in range(256)} | {b"a" * 256: 256}
    shard = made(tmp_path / "data", Tokenizer.of_ranks("long", ranks))
    assert shard.is_file()
    assert not (shard.parent / "tokenizer.bin").exists() and (shard.parent / "about.json").exists()


def test_llamas_bytes_are_a_tokenizer_as_any_other(tmp_path):
    """Text of any bytes comes back, texts are parted by <s>, and the file beside the shards says what they are."""
    using = tokenizer.llama_bytes()
    assert using.encoding.encode_ordinary("aé") == [ord("a") + 3, 0xC3 + 3, 0xA9 + 3]
    about = corpus.write_shards(corpus.Corpus("x", ["ab", "<s>é" * 20]), using, tmp_path, 0.1)
    assert about["vocabulary"] == 259
    ids = shards.open_shard(tmp_path / "train.bin", 259).tolist()
    assert ids[:4] == [ord("a") + 3, ord("b") + 3, 1, ord("<") + 3]
    for beside in (corpus.decoder_beside(tmp_path, "bytes"), corpus.decoder_beside(tmp_path)):
        assert beside is not None and beside.end_of_text == 1 and beside.fingerprint() == using.fingerprint()
        assert beside.decode(ids) == "ab<s>" + ("<s>é" * 20)[:71]
    assert corpus.tokenizer(tmp_path / "tokenizer.bin").name == corpus.tokenizer(Path("bytes")).name == using.name
    (tmp_path / "tokenizer.bin").unlink()
    beside = corpus.decoder_beside(tmp_path, "bytes")
    assert beside is not None and beside.name == using.name, "by about.json alone"


def test_for_a_llama_unsigned_shards_are_not_gpt_2s(tmp_path, small, monkeypatch):
    monkeypatch.setattr(corpus, "gpt2_from_tiktoken_cache", lambda: small)
    assert corpus.decoder_beside(tmp_path / "train.bin") is not None
    assert corpus.decoder_beside(tmp_path / "train.bin", "bytes") is None
