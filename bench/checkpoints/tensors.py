"""Named tensors in a safetensors file: written in one pass with its checksum, read without running anything.

The format (huggingface/safetensors, README, "Format"): 8 bytes little-endian N, N bytes of JSON {name: {dtype, shape,
data_offsets}}, then the data without a gap. It is written here because the library's writer holds the interpreter
while it copies, during which a training step could launch nothing; it is read by the library.
"""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch

from bench.cli import CannotGoOn, no_such
from bench.core.files import cannot_write

KINDS = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
PIECE = 1 << 24  # bytes written, or read, at once
Tensors = Mapping[str, torch.Tensor]


class Image:
    """A file as it will be written, in memory that is used again: `fill` copies tensors in, `write` is for a thread.

    Pinned where a tensor comes from a GPU, so that copies run at the bus's speed.
    """

    def __init__(self, tensors: Tensors, metadata: Mapping[str, str] | None = None):
        self.layout = _layout(tensors)
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        starts = {}
        # the widest first, so that each lies at a multiple of its width
        for name in sorted(tensors, key=lambda n: -tensors[n].element_size()):
            t = tensors[name]
            starts[name], end = end, end + t.nbytes
            header[name] = {"dtype": KINDS[t.dtype], "shape": list(t.shape), "data_offsets": [starts[name], end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.head = len(text).to_bytes(8, "little") + text
        pinned = any(t.is_cuda for t in tensors.values())
        self.body = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
        self.views = {
            name: self.body[starts[name] : starts[name] + t.nbytes].view(t.dtype).view(t.shape)
            for name, t in tensors.items()
        }

    @property
    def bytes(self) -> int:
        return len(self.head) + self.body.nbytes

    def fits(self, tensors: Tensors) -> bool:
        return _layout(tensors) == self.layout

    def fill(self, tensors: Tensors) -> None:
        """Copy the tensors in; done when this returns."""
        for name, t in tensors.items():
            self.views[name].copy_(t, non_blocking=True)
        for device in {t.device for t in tensors.values() if t.is_cuda}:
            torch.cuda.synchronize(device)

    def write(self, path: Path) -> int:
        """Write the file and force it to disk; its CRC-32. Raises OSError."""
        sum = 0
        with path.open("wb", buffering=0) as file:
            for piece in self.pieces():
                sum = zlib.crc32(piece, sum)
                _write_all(file.fileno(), piece)
            os.fsync(file.fileno())
        return sum

    def pieces(self) -> Iterator[memoryview]:
        yield memoryview(self.head)
        body = self.body.numpy().data
        for start in range(0, len(body), PIECE):
            yield body[start : start + PIECE]


def _layout(tensors: Tensors) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (t.dtype, t.shape) for name, t in tensors.items()}


def _write_all(file: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(file, piece) :]


def save_to(file: BinaryIO, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, of any device, into an open file. Raises OSError."""
    image = Image(tensors, metadata)
    image.fill(tensors)
    for piece in image.pieces():
        file.write(piece)


def read(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU. Raises CannotGoOn where it is no whole safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise CannotGoOn(
            f"{path}: not a safetensors file ({error})" if path.is_file() else no_such(path, "file")
        ) from None


def checksum(path: Path) -> int:
    """CRC-32 of a file, read piece by piece. Raises OSError."""
    sum, piece = 0, bytearray(PIECE)
    view = memoryview(piece)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(view):
            sum = zlib.crc32(view[:got], sum)
    return sum


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is there when the body is over, forced to disk, and not before. Raises CannotGoOn where there is one
    already, or where it cannot be written; DiskFull."""
    temporary = path.with_name(f".{path.name}.writing")
    if path.exists():
        raise CannotGoOn(f"{path}: it is there, and stays; take another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # where no folder could be made there is nothing
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that is there, with all that the body writes into the one it is given, when the body is over, and not
    before. Raises as `new_file`."""
    temporary = path.with_name(f".{path.name}.writing")
    if path.exists():
        raise CannotGoOn(f"{path}: it is there, and stays; take another name")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
