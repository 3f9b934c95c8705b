"""Text to tokens to llm.c's .bin shards, and the shards back as arrays.

    python -m bench.data FILE|DIR --out DIR      # train.bin, val.bin and about.json
    python -m bench.data                         # the default data set: the Python standard library's source

A shard is 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros) and then one uint16 a token.
nanoGPT's files (uint16 and no header) are read too. The first 90 % of the characters are for training, the rest for
validation. Documents (files) have <|endoftext|> between them and none before the first, so a single text is its own
tokens and nothing else. Nothing here uses the network.
"""

import argparse
import functools
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import cli
from bench.tokens import (
    END_OF_TEXT,
    VOCABULARY,
    DataError,
    Tokenizer,
    digest,
    gpt2_from_file,
    gpt2_from_tiktoken_cache,
    python_version,
    train_to,
    trained,
    write_whole,
)

if TYPE_CHECKING:
    import numpy as np

MAGIC, VERSION, HEADER_INTS = 20240520, 1, 256
HEADER_BYTES = 4 * HEADER_INTS
OTHER_MAGICS = {
    20240326: "a model checkpoint",
    20240327: "a debug state",
    20240328: "a tokenizer",
    20240522: "an evaluation set",
    20240527: "an optimizer state",
    20240801: "a uint32 data set for Llama 3",
    20240803: "a Llama 3 checkpoint",
}
VAL_FRACTION = 0.1
NO_SOURCE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
AGAIN = "write it again with `python -m bench.data TEXT --out DIR`"


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_tokens(path: Path | str, vocabulary: int = VOCABULARY) -> "np.ndarray":
    """The tokens of a .bin file, or of all training shards in a folder, as a read-only uint16 array (N,).

    Raises DataError, naming the file, for a missing or empty file, a bad header, a size the header does not promise,
    an odd length, and a token that is not below `vocabulary`.
    """
    import numpy as np

    path = Path(path)
    if path.is_dir():
        shards = [open_tokens(shard, vocabulary) for shard in training_shards(path)]
        return shards[0] if len(shards) == 1 else np.concatenate(shards)
    if not path.is_file():
        raise DataError(f"{path}: no such file; {AGAIN}")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty; {AGAIN}")
    start = HEADER_BYTES if _has_header(path, size) else 0
    if (size - start) % 2:
        raise DataError(f"{path}: odd length of {size:,} bytes, so not uint16 tokens; it was cut off, {AGAIN}")
    if size == start:
        raise DataError(f"{path}: a header and no tokens; {AGAIN}")
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=start)
    largest = int(tokens.max())
    if largest >= vocabulary:
        at = int(tokens.argmax())
        raise DataError(
            f"{path}: token {largest} at position {at:,}, but the vocabulary has {vocabulary:,}; "
            f"the file is damaged or was made for another vocabulary, {AGAIN}"
        )
    return tokens


def training_shards(folder: Path) -> list[Path]:
    """The .bin files to train on: those named train, else those not named val."""
    shards = sorted(folder.glob("*.bin"))
    chosen = [s for s in shards if "train" in s.name] or [s for s in shards if "val" not in s.name]
    if not chosen:
        raise DataError(f"{folder}: no training shards (*train*.bin); {AGAIN}")
    return chosen


def batches(tokens: "np.ndarray", B: int, T: int, seed: int) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
    """Endless (x, y), int64 (B, T) each: B windows of T + 1 tokens at random places, y one token after x.

    The places are drawn uniformly by a generator seeded with `seed`: the same arguments give the same batches.
    """
    import numpy as np

    places = len(tokens) - T
    if places < 1:
        raise DataError(f"{len(tokens):,} tokens are too few for sequences of {T}; take more text or a shorter --seq")
    rng = np.random.default_rng(seed)
    window = np.arange(T + 1)

    def draw() -> "Iterator[tuple[np.ndarray, np.ndarray]]":
        while True:
            rows = np.asarray(tokens[rng.integers(places, size=(B, 1)) + window], dtype=np.int64)
            yield rows[:, :-1].copy(), rows[:, 1:].copy()

    return draw()


def _has_header(path: Path, size: int) -> bool:
    """True for llm.c's header, False for nanoGPT's headerless tokens; DataError for any other header."""
    import numpy as np

    head = np.fromfile(path, dtype="<i4", count=min(HEADER_INTS, size // 4))
    if len(head) == 0:
        return False
    magic = int(head[0])
    if magic in OTHER_MAGICS:
        raise DataError(f"{path}: this is {OTHER_MAGICS[magic]} of llm.c, not uint16 tokens; {AGAIN}")
    if magic != MAGIC:
        if len(head) == HEADER_INTS and not head[3:].any():  # zeros to the end of a header: no text looks like this
            raise DataError(f"{path}: bad magic {magic} in the header, expected {MAGIC}; {AGAIN}")
        return False
    if len(head) < HEADER_INTS:
        raise DataError(f"{path}: cut off inside the header ({size} of {HEADER_BYTES} bytes); {AGAIN}")
    if head[1] != VERSION:
        raise DataError(f"{path}: version {head[1]} of the format, this program reads version {VERSION}; {AGAIN}")
    if HEADER_BYTES + 2 * int(head[2]) != size:
        raise DataError(
            f"{path}: the header promises {head[2]:,} tokens, the file holds {(size - HEADER_BYTES) / 2:,.15g}; "
            f"it was cut off or overwritten, copy or {AGAIN}"
        )
    return True


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
        raise DataError(f"{source}: no such file or folder; give a text file, a folder of them, or .bin shards")
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


def default_dataset() -> Path:
    """The training shard of the standard library's source; built once, in about 10 s, and kept in the cache."""
    return cached(standard_library()) / "train.bin"


def dataset(arg: str | Path | None) -> Path:
    """What `--data` means: a .bin file, a folder of shards, text (a file or folder, encoded into the cache), or None.

    Returns a path for `open_tokens`.
    """
    if arg is None:
        return default_dataset()
    path = Path(arg)
    if path.suffix == ".bin" or (path.is_dir() and any(path.glob("*.bin"))):
        return path
    return cached(read_text(path)) / "train.bin"


def cache_dir() -> Path:
    from kernels import cache_dir as root

    return root() / "data"


def tokenizer(vocab: Path | None = None) -> Tokenizer:
    """GPT-2's encoding from `vocab` or from tiktoken's cache; else the one trained on the standard library."""
    if vocab is not None:
        return gpt2_from_file(vocab)
    if at_hand := gpt2_from_tiktoken_cache():
        return at_hand
    source = standard_library()
    vocabulary = cache_dir() / f"bpe-{digest(source.documents)[:20]}.tiktoken"
    if not vocabulary.exists():
        with working("training a 50,257-token BPE on the standard library's source (once; about 10 s)"):
            train_to(vocabulary, source.documents)
    return trained(vocabulary, source.name)


def cached(corpus: Corpus, vocab: Path | None = None, val_fraction: float = VAL_FRACTION) -> Path:
    """The folder of `corpus`'s shards in the cache, built now where it is not there.

    The folder appears whole by one rename: an interrupted build leaves nothing that looks finished, and where two
    processes build it at once the second to finish uses the first one's.
    """
    using = tokenizer(vocab)
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
    """Write train.bin, val.bin and about.json; returns what about.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    about: dict = {
        "source": corpus.name,
        "source_sha256": digest(corpus.documents),
        "documents": len(corpus.documents),
        "characters": corpus.characters,
        "skipped_files": corpus.skipped,
        "tokenizer": using.name,
        "tokenizer_sha256": using.fingerprint(),
        "vocabulary": VOCABULARY,
        "val_fraction": val_fraction,
    }
    with working(f"encoding {corpus.characters / 1e6:.1f} million characters"):
        arrays = [_encode(documents, using) for documents in corpus.split(val_fraction)]
    for part, tokens in zip(("train", "val"), arrays, strict=True):
        if len(tokens) == 0:
            raise DataError(
                f"{corpus.name}: too little text for a {part} shard; take more text or another --val-fraction"
            )
        about[f"{part}_tokens"] = len(tokens)
    for part, tokens in zip(("train", "val"), arrays, strict=True):
        write_tokens(folder / f"{part}.bin", tokens)
    write_whole(folder / "about.json", (json.dumps(about, indent=2) + "\n").encode())
    return about


def write_tokens(path: Path, tokens: "np.ndarray") -> None:
    """Write tokens (N,), uint16, as an llm.c shard."""
    import numpy as np

    if len(tokens) >= 2**31:
        raise DataError(f"{path}: {len(tokens):,} tokens do not fit a shard (its count is an int32); split the text")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    write_whole(path, header.tobytes() + tokens.astype("<u2").tobytes())


def _encode(documents: list[str], using: Tokenizer) -> "np.ndarray":
    import numpy as np

    pieces: list[np.ndarray] = []
    for document in documents:
        if pieces:
            pieces.append(np.array([END_OF_TEXT], dtype=np.uint16))
        # no special tokens: <|endoftext|> written out inside a document is text like any other
        pieces.append(np.array(using.encoding.encode_ordinary(document), dtype=np.uint16))
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.uint16)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Say on stderr what is being done: a spinner for a terminal, a line elsewhere."""
    if not sys.stderr.isatty():
        cli.say(text)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


# ---- command line ----------------------------------------------------------------------------------------------------


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.data", description=__doc__)
    p.add_argument("source", nargs="?", type=Path, metavar="FILE|DIR", help="text; default: the standard library")
    p.add_argument("--out", type=Path, metavar="DIR", help="where the shards go; default: the cache")
    p.add_argument("--vocab", type=Path, metavar="FILE", help="GPT-2's vocabulary as a .tiktoken rank file")
    p.add_argument("--val-fraction", type=_fraction, default=VAL_FRACTION, metavar="F", help="default %(default)s")
    p.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return p


def _fraction(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a fraction between 0 and 1")
    return value


def main() -> int:
    args = parser().parse_args()
    try:
        return encode(args)
    except OSError as error:  # unreadable text, no room left, no right to write
        raise DataError(cli.cannot(error)) from None


def encode(args: argparse.Namespace) -> int:
    corpus = standard_library() if args.source is None else read_text(args.source)
    if args.out:
        folder, about = args.out, write_shards(corpus, tokenizer(args.vocab), args.out, args.val_fraction)
    else:
        folder = cached(corpus, args.vocab, args.val_fraction)
        about = json.loads((folder / "about.json").read_text())
    if args.json:
        cli.print_json(about | {"folder": str(folder)})
        return cli.OK
    print(f"text       {about['source']}: {about['documents']:,} documents, {about['characters']:,} characters")
    if about["skipped_files"]:
        print(f"left out   {about['skipped_files']:,} files that are not UTF-8 text")
    print(f"tokenizer  {about['tokenizer']}")
    print(f"train      {about['train_tokens']:,} tokens  {folder / 'train.bin'}")
    print(f"val        {about['val_tokens']:,} tokens  {folder / 'val.bin'}")
    return cli.OK


if __name__ == "__main__":
    cli.run(main)
