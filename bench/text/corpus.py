"""Text, and the shards that are made of it: documents, encoded once and kept in the cache."""

import functools
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import cli
from bench.core.files import put, recall, remember
from bench.text import VAL_FRACTION
from bench.text.decoding import Decoder, decoder_of, encoding_of, read_tokenizer, write_tokenizer
from bench.text.shards import write_tokens
from bench.text.tokenizer import (
    DataError,
    Tokenizer,
    digest,
    gpt2_from_file,
    gpt2_from_tiktoken_cache,
    llama_bytes,
    python_version,
    read_ranks,
    train_to,
    trained,
)
from kernels import cache_dir as root

TOKENIZER = "tokenizer.bin"  # beside the shards, in llm.c's layout
NO_SOURCE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


# ---- text ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Documents and what they are. `name` holds no absolute path: it is written beside the shards."""

    name: str
    documents: list[str]
    skipped: int = 0  # files that are not UTF-8 text

    @property
    def characters(self) -> int:
        return sum(map(len, self.documents))

    def split(self, val_fraction: float) -> tuple[list[str], list[str]]:
        """Training and validation documents: a cut by characters, through the document it falls into."""
        left = int(self.characters * (1 - val_fraction))
        train: list[str] = []
        for i, document in enumerate(self.documents):
            if len(document) > left:
                halves = [document[:left]] if left else []
                return train + halves, [document[left:], *self.documents[i + 1 :]]
            train.append(document)
            left -= len(document)
        return train, []


@functools.cache
def standard_library() -> Corpus:
    """The source of this Python's standard library, about 11 MB: a text every machine has."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in _files(folder) if f.suffix == ".py" and not NO_SOURCE & set(f.relative_to(folder).parts)]
    return _corpus(f"the {python_version()} standard library's source", files, "the Python standard library")


def read_text(source: Path) -> Corpus:
    """A text file, or every UTF-8 file below a folder in the order of their paths (hidden ones left out)."""
    if source.is_dir():
        return _corpus(f"folder {source.resolve().name}", _files(source), str(source))
    if not source.is_file():
        raise DataError(cli.no_such(source, way="give a text file, a folder of them, or .bin shards"))
    if _text(source) is None:
        raise DataError(f"{source}: not UTF-8 text; convert it (iconv -t UTF-8), or name it .bin if it holds tokens")
    return _corpus(f"file {source.name}", [source], str(source))


def _corpus(name: str, files: list[Path], shown: str) -> Corpus:
    texts = [_text(file) for file in files]
    documents = [text for text in texts if text]
    if not documents:
        raise DataError(f"{shown}: the text is empty; give a text file or a folder that holds some")
    return Corpus(name, documents, texts.count(None))


def _files(folder: Path) -> list[Path]:
    found = []
    for at, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(at, n) for n in names if not n.startswith(".")]
    return sorted(f for f in found if f.is_file())


def _text(file: Path) -> str | None:
    content = file.read_bytes()
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


# ---- writing ---------------------------------------------------------------------------------------------------------


def encode(source: Path | None, out: Path | None, vocab: Path | None, val_fraction: float) -> tuple[Path, dict]:
    """Shards of a text (None: the standard library), in `out` or in the cache: their folder, and its about.json."""
    corpus = standard_library() if source is None else read_text(source)
    if out:
        return out, write_shards(corpus, tokenizer(vocab), out, val_fraction)
    folder = cached(corpus, vocab, val_fraction)
    return folder, json.loads((folder / "about.json").read_text())


def default_dataset(kind: str = "gpt2") -> Path:
    """The training shard of the standard library's source in tokens of this kind; built once, in about 10 s, and kept
    in the cache.

    Where it is kept is remembered by Python's version and folder: reading 11 MB of source to find out takes seconds.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    at_hand = tokenizer_at_hand(kind)
    text = [sys.version, str(folder), folder.stat().st_mtime_ns, at_hand.fingerprint() if at_hand else ""]
    key, memory = hashlib.sha256(json.dumps(text).encode()).hexdigest()[:20], cache_dir() / "default.json"
    found = cache_dir() / str(recall(memory).get(key)) / "train.bin"
    if not found.is_file():
        found = cached(standard_library(), kind=kind) / "train.bin"
        with suppress(OSError):  # a cache that can be read only
            remember(memory, {key: found.parent.name})
    return found


def dataset(arg: str | Path | None, kind: str = "gpt2") -> Path:
    """What `--data` means: a .bin file, a folder of shards, text (a file or folder, encoded into the cache), or None.

    kind: of the tokens that text becomes. Returns a path for `open_tokens`.
    """
    if arg is None:
        return default_dataset(kind)
    path = Path(arg)
    if path.suffix == ".bin" or (path.is_dir() and any(path.glob("*.bin"))):
        return path
    return cached(read_text(path), kind=kind) / "train.bin"


def cache_dir() -> Path:
    return root() / "data"


def tokenizer_at_hand(kind: str) -> Tokenizer | None:
    """The encoding of a kind of bench.text.tokenizer.KINDS, where nothing must be trained for it."""
    return llama_bytes() if kind == "bytes" else gpt2_from_tiktoken_cache()


def tokenizer(vocab: Path | None = None, kind: str = "gpt2") -> Tokenizer:
    """The encoding of `vocab`, a .tiktoken rank file, llm.c's tokenizer .bin, or the word "bytes"; without one that of
    the kind: of gpt2 the one from tiktoken's cache, else the one trained on the standard library."""
    if vocab is not None and not (str(vocab) == "bytes" and not vocab.exists()):
        return encoding_of(vocab) if vocab.suffix == ".bin" else gpt2_from_file(vocab)
    if at_hand := tokenizer_at_hand(kind if vocab is None else str(vocab)):
        return at_hand
    source = standard_library()
    vocabulary = cache_dir() / f"bpe-{digest(source.documents)[:20]}.tiktoken"
    if not vocabulary.exists():
        cli.say("training a 50,257-token BPE on the standard library's source (once; about 10 s)")
        train_to(vocabulary, source.documents)
    return trained(vocabulary, source.name)


def cached(corpus: Corpus, vocab: Path | None = None, val_fraction: float = VAL_FRACTION, kind: str = "gpt2") -> Path:
    """The folder of `corpus`'s shards in the cache, built now where it is not there.

    The folder appears whole by one rename: an interrupted build leaves nothing that looks finished, and where two
    processes build it at once the second to finish uses the first one's.
    """
    using = tokenizer(vocab, kind)
    key = hashlib.sha256(f"{digest(corpus.documents)} {using.fingerprint()} {val_fraction}".encode()).hexdigest()[:20]
    folder = cache_dir() / f"shards-{key}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    try:
        write_shards(corpus, using, partial, val_fraction)
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:  # not empty: another process was first
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def write_shards(corpus: Corpus, using: Tokenizer, folder: Path, val_fraction: float) -> dict:
    """Write train.bin, val.bin, tokenizer.bin and about.json; returns what about.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    about: dict = {
        "source": corpus.name,
        "source_sha256": digest(corpus.documents),
        "documents": len(corpus.documents),
        "characters": corpus.characters,
        "skipped_files": corpus.skipped,
        "tokenizer": using.name,
        "tokenizer_sha256": using.fingerprint(),
        "vocabulary": using.vocabulary,
        "val_fraction": val_fraction,
    }
    cli.say(f"encoding {cli.several(corpus.characters, 'character')}")
    arrays = [_encode(documents, using) for documents in corpus.split(val_fraction)]
    for part, tokens in zip(("train", "val"), arrays, strict=True):
        if len(tokens) == 0:
            raise DataError(
                f"{corpus.name}: too little text for a {part} shard; take more text or another --val-fraction"
            )
        about[f"{part}_tokens"] = len(tokens)
    for part, tokens in zip(("train", "val"), arrays, strict=True):
        write_tokens(folder / f"{part}.bin", tokens)
    with suppress(DataError):  # a token too long for the format; about.json says which tokenizer it was all the same
        write_tokenizer(folder / TOKENIZER, decoder_of(using))
    put(folder / "about.json", (json.dumps(about, indent=2) + "\n").encode())
    return about


def _encode(documents: list[str], using: Tokenizer) -> np.ndarray:
    pieces: list[np.ndarray] = []
    for document in documents:
        if pieces:
            pieces.append(np.array([using.end_of_text], dtype=np.uint16))
        # no special tokens: <|endoftext|> written out inside a document is text like any other
        pieces.append(np.array(using.encoding.encode_ordinary(document), dtype=np.uint16))
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.uint16)


# ---- back to text ----------------------------------------------------------------------------------------------------


def decoder_beside(shard: Path, kind: str = "gpt2") -> Decoder | None:
    """The decoder of the tokenizer that a shard was made with; None where nothing tells.

    It is the tokenizer file beside the shard, else the one at hand whose fingerprint stands in about.json there. Where
    neither is there, shards for a model of the kind gpt2 are taken to be GPT-2's, as llm.c's and nanoGPT's are, if its
    vocabulary is at hand.
    """
    folder = shard if shard.is_dir() else shard.parent
    for name in (TOKENIZER, "gpt2_tokenizer.bin"):  # the second is llm.c's own
        if (folder / name).is_file():
            return read_tokenizer(folder / name)
    said = about_of(folder)
    for using in _at_hand():
        if using.fingerprint() == said.get("tokenizer_sha256"):
            return decoder_of(using)
    gpt2 = gpt2_from_tiktoken_cache() if kind == "gpt2" else None
    if said or gpt2 is None:
        return None
    return decoder_of(Tokenizer(f"{gpt2.name}; assumed, for nothing beside the shards says", gpt2.encoding))


def about_of(folder: Path) -> dict:
    """What about.json beside shards says; empty where there is none that can be read."""
    try:
        said = json.loads((folder / "about.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _at_hand() -> list[Tokenizer]:
    """GPT-2's encoding, Llama's bytes, and those that were trained here before."""
    gpt2 = gpt2_from_tiktoken_cache()
    found = [llama_bytes(), *([gpt2] if gpt2 else [])]
    for vocabulary in sorted(cache_dir().glob("bpe-*.tiktoken")):
        found.append(Tokenizer.of_ranks("50,257-token BPE from the cache", read_ranks(vocabulary)))
    return found
