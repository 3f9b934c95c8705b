"""NVRTC, without a driver: CUDA C++ to PTX or to a cubin for one architecture, cached on disk.

`compile_source` is what the launcher, the simulator and `bench.static` share. The key of the cache is the source with
all that it may include (kernels/cpu/includes.py), the options and NVRTC's version, so a stale build is never loaded.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kernels import Unavailable, cache_dir, put
from kernels.cpu.includes import sources

HERE = Path(__file__).parent


class CompileError(RuntimeError):
    """NVRTC refused a kernel; the message is its own, with file and line of the .cu."""


@dataclass(frozen=True)
class Binary:
    """PTX text or a cubin's bytes; `names` gives the symbol of each name expression; `log` is the compiler's."""

    code: bytes
    names: dict[str, str]
    log: str


def compile_source(
    source: Path, names: tuple[str, ...], arch: str, kind: str = "ptx", defines: tuple[str, ...] = ()
) -> Binary:
    """Compile `source` for `arch` ("sm_80", "sm_90a", …) with the instances `names`; `kind` is "ptx" or "cubin".

    Raises CompileError with NVRTC's messages, Unavailable where NVRTC or the CUDA headers are not installed.
    """
    target = arch if kind == "cubin" else arch.replace("sm_", "compute_")
    options = [
        *("--std=c++17", "-default-device", "--device-int128", "-lineinfo", f"-arch={target}"),
        *(f"-D{d}" for d in defines),
    ]
    if kind == "cubin":
        options.append("--ptxas-options=-v")
    folders = [HERE, source.parent, cuda_headers()]
    key, whole = _key(source, names, kind, options)
    if not whole:
        return _compile_unkept(key, source, names, kind, (*options, *(f"-I{folder}" for folder in folders)))
    stem = cache_dir() / "cuda" / f"{source.parent.name}-{source.stem}-{key}"
    code, facts = stem.with_suffix(f".{kind}"), stem.with_suffix(".json")
    if not facts.exists():
        binary = _compile(source, names, kind, [*options, *(f"-I{folder}" for folder in folders)])
        put(code, binary.code)
        put(facts, json.dumps({"names": binary.names, "log": binary.log}).encode())
    return Binary(code.read_bytes(), **json.loads(facts.read_text()))


def _key(source: Path, names: tuple[str, ...], kind: str, options: list[str]) -> tuple[str, bool]:
    """What a build is found again by; False where it may read what this does not cover."""
    read = sources(source, [HERE, source.parent], [cuda_headers()])
    digest = hashlib.sha256(read.digest.encode())
    digest.update(repr((names, kind, options, version())).encode())
    return digest.hexdigest()[:20], read.whole


@functools.lru_cache(maxsize=64)
def _compile_unkept(key: str, source: Path, names: tuple[str, ...], kind: str, options: tuple[str, ...]) -> Binary:
    """A build for this process alone: of what the source includes by a macro's name, nothing is known before."""
    return _compile(source, names, kind, list(options))


def _compile(source: Path, names: tuple[str, ...], kind: str, options: list[str]) -> Binary:
    nvrtc = _nvrtc()
    # The path as the program's name: it is in the compiler's messages and in the line table of the PTX.
    program = _ok(nvrtc.nvrtcCreateProgram(source.read_bytes(), str(source).encode(), 0, [], []))
    try:
        for name in names:
            _ok(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        encoded = [o.encode() for o in options]
        (failed,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        if failed != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            short = re.sub(rf"{re.escape(str(source.parent))}/", "", log.rstrip("\0")).strip()
            raise CompileError(f"NVRTC could not compile {source.name} for {', '.join(names)}:\n{short or failed}")
        lowered = {n: _ok(nvrtc.nvrtcGetLoweredName(program, n.encode())).decode() for n in names}
        get = (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if kind == "cubin" else None
        code = _text(*(get or (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)), program)
        return Binary(code if kind == "cubin" else code.rstrip(b"\0"), lowered, log.rstrip("\0"))
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _ok(answer: tuple):
    code, *rest = answer
    if int(code):
        raise CompileError(f"NVRTC: {code.name}")
    return rest[0] if rest else None


def _text(size, get, program) -> bytes:
    count = _ok(size(program))
    # NVRTC writes into these bytes. One more than it needs: Python has one object for all bytes of length one, and an
    # empty log of one NUL would be written into everybody's b" ".
    buffer = b" " * (count + 1)
    _ok(get(program, buffer))
    return buffer[:count]


@functools.cache
def _nvrtc():
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception as error:
        raise Unavailable("NVRTC is not installed (pip install 'layerbench[simulate]')") from error
    return nvrtc


@functools.cache
def version() -> str:
    """NVRTC's version, and that of the headers it compiles with."""
    _, major, minor = _nvrtc().nvrtcVersion()
    try:
        headers = importlib.metadata.version("nvidia-cuda-runtime")
    except importlib.metadata.PackageNotFoundError:
        headers = str(cuda_headers())
    return f"{major}.{minor} {headers}"


@functools.cache
def cuda_headers() -> Path:
    """The folder with cuda_bf16.h: of the nvidia-cuda-runtime wheel, or of the toolkit at $CUDA_HOME."""
    candidates = []
    try:
        files = importlib.metadata.files("nvidia-cuda-runtime") or []
        candidates += [Path(str(f.locate())).parent for f in files if f.name == "cuda_bf16.h"]
    except importlib.metadata.PackageNotFoundError:
        pass
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    candidates.append(Path(home) / "include")
    for folder in candidates:
        if (folder / "cuda_bf16.h").is_file():
            return folder
    raise Unavailable("the CUDA headers are not installed (pip install 'layerbench[simulate]', or set CUDA_HOME)")
