"""Text to shards and back: exact counts, damaged files, determinism, two builders at once."""

import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bench import HOME
from bench.text import corpus as data
from bench.text import shards, tokenizer
from bench.text.tokenizer import END_OF_TEXT, DataError, Tokenizer

TEST_DATA = Path(os.environ.get("LAYERBENCH_TEST_DATA", HOME.parent / "shared" / "data"))
SHAKESPEARE, GPT2 = TEST_DATA / "tinyshakespeare.txt", TEST_DATA / "gpt2.tiktoken"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-tiktoken"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def letters(tmp_path) -> Tokenizer:
    """The smallest vocabulary: one token a byte."""
    path = tmp_path / "bytes.tiktoken"
    path.write_bytes(tokenizer.rank_lines({bytes([b]): b for b in range(256)}))
    return tokenizer.gpt2_from_file(path)


def shard(path: Path, ids, magic=shards.MAGIC, version=shards.VERSION, count=None) -> Path:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype="<u2").tobytes())
    return path


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_written_shard_reads_back_and_has_llm_c_s_layout(tmp_path):
    ids = np.array([5, 0, 50256, 7], dtype=np.uint16)
    shards.write_tokens(tmp_path / "a.bin", ids)
    raw = (tmp_path / "a.bin").read_bytes()
    assert len(raw) == 1024 + 2 * 4
    assert raw[:12] == (20240520).to_bytes(4, "little") + (1).to_bytes(4, "little") + (4).to_bytes(4, "little")
    assert not any(raw[12:1024])
    back = shards.open_shard(tmp_path / "a.bin")
    assert back.dtype == np.uint16
    assert back.tolist() == ids.tolist()


def test_nanogpt_s_headerless_file(tmp_path):
    ids = np.arange(3000, dtype="<u2")
    ids.tofile(tmp_path / "train.bin")
    assert shards.open_shard(tmp_path / "train.bin").tolist() == ids.tolist()


def test_a_short_headerless_file(tmp_path):
    np.array([9], dtype="<u2").tofile(tmp_path / "one.bin")
    assert shards.open_shard(tmp_path / "one.bin").tolist() == [9]


def test_a_folder_is_its_training_shards_in_order(tmp_path):
    shard(tmp_path / "x_train_000002.bin", [3, 4])
    shard(tmp_path / "x_train_000001.bin", [1, 2])
    shard(tmp_path / "x_val_000000.bin", [9])
    tokens = shards.open_tokens(tmp_path)
    assert len(tokens) == 4 and tokens[np.array([[0, 1], [2, 3], [1, 2]])].tolist() == [[1, 2], [3, 4], [2, 3]]
    assert isinstance(tokens, shards.EndToEnd) and all(isinstance(s, np.memmap) for s in tokens.shards), "not copied"


DAMAGE = {
    "empty": (lambda p: p.write_bytes(b""), "the file is empty"),
    "no tokens": (lambda p: shard(p, []), "a header and no tokens"),
    "odd, no header": (lambda p: p.write_bytes(b"\x01\x00\x02"), "odd length of 3 bytes"),
    "odd, header": (
        lambda p: p.write_bytes(shard(p, [1, 2]).read_bytes()[:-1]),
        "promises 2 tokens.*holds 1.5",
    ),
    "bad magic": (lambda p: shard(p, [1, 2], magic=1234), "bad magic 1234.*expected 20240520"),
    "other file": (lambda p: shard(p, [1, 2], magic=20240326), "a model checkpoint of llm.c"),
    "version": (lambda p: shard(p, [1, 2], version=7), "version 7"),
    "cut off": (lambda p: shard(p, [1, 2], count=3), "promises 3 tokens, the file holds 2"),
    "cut in header": (lambda p: p.write_bytes(shard(p, [1]).read_bytes()[:100]), "cut off inside the header"),
    "big token": (
        lambda p: shard(p, [1, 50257, 2]),
        "token 50257 at position 1, but the vocabulary has 50,257",
    ),
    "big, no header": (lambda p: np.array([1, 2, 60000], "<u2").tofile(p), "token 60000 at position 2"),
    "missing": (lambda p: None, "no such file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, kind):
    make, message = DAMAGE[kind]
    path = tmp_path / "tokens.bin"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        shards.open_tokens(path)
    assert str(path) in str(caught.value)
    assert "python -m bench.data" in str(caught.value)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_deterministic_shifted_windows():
    ids = np.arange(1000, dtype=np.uint16)
    first, again, other = (shards.batches(ids, 4, 16, seed) for seed in (1, 1, 2))
    for _ in range(3):
        x, y = next(first)
        assert x.shape == y.shape == (4, 16)
        assert x.dtype == y.dtype == np.int64
        assert (y == x + 1).all() and (np.diff(x, axis=1) == 1).all()
        x2, y2 = next(again)
        assert (x == x2).all() and (y == y2).all()
        assert not (x == next(other)[0]).all()


def test_batches_reach_both_ends():
    ids = np.arange(6, dtype=np.uint16)
    x, y = next(shards.batches(ids, 200, 4, 0))
    assert set(x[:, 0]) == {0, 1}
    assert y.max() == 5


def test_too_few_tokens_are_refused():
    assert next(shards.batches(np.arange(5, dtype=np.uint16), 1, 4, 0))[1].tolist() == [[1, 2, 3, 4]]
    with pytest.raises(DataError, match="4 tokens, too few for sequences of 4"):
        shards.batches(np.arange(4, dtype=np.uint16), 1, 4, 0)


def test_a_step_s_batches_are_the_same_by_number_in_every_process(tmp_path):
    """Whoever asks for whichever steps first gets what a list of the whole run would hold."""
    written = tmp_path / "train.bin"
    shards.write_tokens(written, np.random.default_rng(7).integers(0, 50257, 3000).astype(np.uint16))
    source = shards.batches(shards.open_shard(written), 3, 8, seed=4)
    whole = [[next(source) for _ in range(2)] for _ in range(5)]
    made = pickle.loads(pickle.dumps(shards.Batches(written, 3, 8, 2, 4)))

    def same(found: list, wanted: list) -> bool:
        assert len(found) == len(wanted)
        return np.array_equal(np.array(found), np.array(wanted))

    later = made.of(range(2, 5))
    assert len(later) == 3 and same(list(later), whole[2:]) and same(list(later), whole[2:]), "and once more"
    assert same(list(made.of(range(3))), whole[:3]) and same(made.step(4), whole[4])
    with pytest.raises(DataError, match="too few"):
        shards.Batches(written, 3, 3000, 2, 4)


# ---- text and tokens -------------------------------------------------------------------------------------------------


def test_split_is_by_characters_through_a_document():
    corpus = data.Corpus("x", ["aé" * 5, "b" * 10])
    assert corpus.split(0.25) == (["aé" * 5, "b" * 5], ["b" * 5])
    assert corpus.split(0.5) == (["aé" * 5], ["b" * 10])
    assert corpus.split(0.95) == (["a"], ["éaéaéaéaé", "b" * 10])


def test_documents_are_parted_by_end_of_text_and_text_cannot_forge_it(letters):
    ids = data._encode(["ab", "c<|endoftext|>"], letters).tolist()
    assert ids == [97, 98, END_OF_TEXT, 99, *b"<|endoftext|>"]


def test_a_folder_in_order_without_hidden_and_binary_files(tmp_path):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    for name, content in [
        ("b.txt", b"B"),
        ("sub/a.txt", b"A"),
        (".hidden", b"H"),
        ("c.bin", b"\0x"),
        ("d", b"\xff"),
    ]:
        (folder / name).write_bytes(content)
    corpus = data.read_text(folder)
    assert corpus.documents == ["B", "A"]
    assert corpus.skipped == 2
    assert corpus.name == "folder texts"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the text is empty"), (b"caf\xe9", "not UTF-8 text"), (None, "no such file or folder")],
)
def test_bad_text_is_named(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.read_text(path)
    assert str(path) in str(caught.value)


def test_training_is_deterministic_and_round_trips(tmp_path):
    text = [p.read_text() for p in sorted((HOME / "bench").rglob("*.py"))] + ["naïve ☃ — \x00\x7f"]
    ranks = tokenizer.train_bpe(text, 2000)
    assert ranks == tokenizer.train_bpe(text, 2000)
    assert sorted(ranks.values()) == list(range(2000))
    path = tmp_path / "small.tiktoken"
    path.write_bytes(tokenizer.rank_lines(ranks))
    assert tokenizer.read_ranks(path) == ranks
    encoding = tokenizer.gpt2_from_file(path).encoding
    for document in text:
        ids = encoding.encode_ordinary(document)
        assert encoding.decode(ids) == document
    assert len(encoding.encode_ordinary("".join(text))) < len("".join(text)) / 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not base64!\n", ":1: not a line"),
        (b"IQ== 0\nIg== 5\n", "ranks have gaps"),
        (b"IQ== 0\nIg== 1\n", "a byte is missing"),
    ],
)
def test_a_damaged_vocabulary_is_named(tmp_path, content, message):
    path = tmp_path / "v.tiktoken"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        tokenizer.read_ranks(path)
    assert str(path) in str(caught.value)


def test_tiktoken_never_reaches_for_the_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert tokenizer.gpt2_from_tiktoken_cache() is None


needs_test_data = pytest.mark.skipif(
    not (SHAKESPEARE.exists() and GPT2.exists()),
    reason="no tinyshakespeare.txt and gpt2.tiktoken in $LAYERBENCH_TEST_DATA or ../shared/data",
)


@needs_test_data
def test_tiny_shakespeare_gives_exactly_the_known_counts(tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "bench.data",
        str(SHAKESPEARE),
        "--vocab",
        str(GPT2),
        "--out",
        str(out),
        "--json",
    ]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["train_tokens"], said["val_tokens"]) == (301_966, 36_059)
    assert len(shards.open_tokens(out / "train.bin")) == 301_966
    assert len(shards.open_tokens(out / "val.bin")) == 36_059
    about = json.loads((out / "about.json").read_text())
    assert about["tokenizer"] == "GPT-2 vocabulary (gpt2.tiktoken)"
    assert str(TEST_DATA) not in (out / "about.json").read_text(), "no absolute paths beside the shards"
    start = tokenizer.gpt2_from_file(GPT2).encoding.decode(shards.open_shard(out / "train.bin")[:100].tolist())
    assert SHAKESPEARE.read_text().startswith(start)


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch, letters):
    """Encoding by bytes: what is tested is the cache, not the 10 s of training."""
    monkeypatch.setattr(data, "tokenizer", lambda vocab=None, kind="gpt2": letters)


def test_dataset_resolves_what_data_may_name(tmp_path, quick, own_cache):
    text = tmp_path / "text.txt"
    text.write_text("some text " * 20)
    made = data.dataset(text)
    assert made.parent.parent == own_cache
    assert bytes(shards.open_shard(made).tolist()).decode() == text.read_text()[:180]
    assert data.dataset(made) == made
    assert data.dataset(made.parent) == made.parent
    assert shards.training_shards(made.parent) == [made]
    before = made.stat().st_mtime_ns
    assert data.dataset(str(text)) == made
    assert made.stat().st_mtime_ns == before, "the cache was not used"


def test_an_interrupted_build_leaves_nothing(quick, own_cache, monkeypatch):
    def interrupted(path, ids):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data, "write_tokens", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.cached(data.Corpus("x", ["words " * 50]))
    assert list(own_cache.iterdir()) == []
    assert len(shards.open_tokens(data.cached(data.Corpus("x", ["words " * 50])))) == 270


def test_two_builders_at_once_both_get_whole_shards(quick, own_cache, monkeypatch):
    corpus = data.Corpus("x", ["words " * 50])
    both_built = threading.Barrier(2, timeout=20)
    write_shards = data.write_shards

    def together(*args):
        said = write_shards(*args)
        both_built.wait()  # both have written everything before either renames
        return said

    monkeypatch.setattr(data, "write_shards", together)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(data.cached(corpus))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert list(own_cache.iterdir()) == folders[:1]
    assert len(shards.open_tokens(folders[0])) == 270


def test_too_little_text_is_refused(quick, tmp_path, letters):
    with pytest.raises(DataError, match="too little text for a train shard"):
        data.write_shards(data.Corpus("x", ["a"]), letters, tmp_path / "out", 0.1)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_default_dataset_is_the_standard_library(own_cache):
    train = data.default_dataset()
    about = json.loads((train.parent / "about.json").read_text())
    assert "standard library" in about["source"]
    assert "ids differ from GPT-2's" in about["tokenizer"]
    ids = shards.open_shard(train)
    assert len(ids) == about["train_tokens"] > 1_000_000
    assert ids.max() == END_OF_TEXT
    assert len(np.unique(ids)) > 30_000
    assert data.default_dataset() == train


def test_where_the_default_dataset_is_kept_is_remembered(own_cache, monkeypatch):
    """The library's source is read again for another Python, and where the shards are gone."""
    read: list[int] = []

    def cached(corpus, kind):
        read.append(1)
        folder = own_cache / f"shards-{len(read)}"
        folder.mkdir(parents=True)
        (folder / "train.bin").touch()
        return folder

    monkeypatch.setattr(data, "cached", cached)
    monkeypatch.setattr(data, "standard_library", lambda: None)
    first = data.default_dataset()
    assert data.default_dataset() == first and len(read) == 1
    with monkeypatch.context() as another:
        another.setattr(data.sys, "version", "another")
        assert data.default_dataset() != first and len(read) == 2
    assert data.default_dataset() == first and len(read) == 2
    first.unlink()
    assert data.default_dataset() != first and len(read) == 3


# ---- command line ----------------------------------------------------------------------------------------------------


def command(*arguments):
    line = [sys.executable, "-m", "bench.data", *arguments]
    return subprocess.run(line, cwd=HOME, capture_output=True, text=True)


def test_command_line_errors_are_one_line_with_a_code(tmp_path):
    assert (done := command("--val-fraction", "2")).returncode == 64
    assert "not a fraction between 0 and 1" in done.stderr
    assert (done := command("--jsn")).returncode == 64
    assert "did you mean '--json'" in done.stderr
    assert (done := command(str(tmp_path / "nothing"))).returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


RESIDENT = """
import sys
from bench.text import shards

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(s.split()[1]) for s in lines if s.startswith(("RssAnon", "RssFile"))) * 1024

def draw(folder):
    tokens = shards.open_tokens(folder)
    next(shards.batches(tokens, 4, 64, 0))
    return tokens

draw(sys.argv[1])  # so that all is imported
before = resident()
tokens = draw(sys.argv[2])
print(2 * len(tokens), resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory is resident")
def test_a_folder_of_shards_does_not_come_into_memory(tmp_path):
    """Neither copied nor, by being checked, left resident in the map."""
    ids = np.random.default_rng(0).integers(0, 50257, 8 << 20).astype(np.uint16)
    for folder, count, tokens in (("small", 1, ids[:1000]), ("large", 4, ids)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            shards.write_tokens(tmp_path / folder / f"train_{i}.bin", tokens)
    command = [sys.executable, "-c", RESIDENT, tmp_path / "small", tmp_path / "large"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HOME)
    size, grown = map(int, done.stdout.split())
    assert size == 4 * ids.nbytes and grown < size / 4  # a page that is looked at brings its neighbours
