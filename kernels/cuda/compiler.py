"""NVRTC, without a driver: CUDA C++ to PTX or to a cubin for one architecture, cached on disk.

`compile_source` is what the launcher, the simulator and `bench.static` share. The key of the cache is the source with
all that it may include (kernels/includes.py), the options and NVRTC's version, so a stale build is never loaded.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels import Unavailable, cache_dir, put
from kernels.cuda import cplusplus, signature, standard
from kernels.cuda.signature import Appended, Parameter
from kernels.includes import sources

HERE = Path(__file__).parent
HEADERS = ("nvidia-cuda-runtime", "nvidia-cuda-cccl", "nvidia-cuda-crt")  # packages that kernels include from


class CompileError(RuntimeError):
    """NVRTC refused a kernel; the message is its own, with file and line of the .cu."""


@dataclass(frozen=True)
class Binary:
    """PTX text or a cubin's bytes; `names` gives the symbol of each name expression; `log` is the compiler's."""

    code: bytes
    names: dict[str, str]
    log: str


def compile_source(
    source: Path,
    names: tuple[str, ...],
    arch: str,
    kind: str = "ptx",
    defines: tuple[str, ...] = (),
    appended: Appended | None = None,
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
    folders = [HERE, source.parent, *standard.folders()]
    key, whole = _key(source, names, kind, [*options, repr(appended)])
    options += [f"-I{folder}" for folder in folders]
    if not whole:
        return _compile_unkept(key, source, names, kind, tuple(options), appended)
    # Appended, and no suffix in another's place: a folder or a file may have dots in its name.
    stem = f"{source.parent.name}-{source.stem}-{key}"
    code, facts = (cache_dir() / "cuda" / f"{stem}.{end}" for end in (kind, "json"))
    if not facts.exists():
        binary = _compile(source, names, kind, options, appended)
        put(code, binary.code)
        put(facts, json.dumps({"names": binary.names, "log": binary.log}).encode())
    return Binary(code.read_bytes(), **json.loads(facts.read_text()))


def _key(source: Path, names: tuple[str, ...], kind: str, options: list[str]) -> tuple[str, bool]:
    """What a build is found again by; False where it may read what this does not cover."""
    read = sources(source, [HERE, source.parent], standard.folders())
    digest = hashlib.sha256(read.digest.encode())
    digest.update(repr((names, kind, options, version())).encode())
    return digest.hexdigest()[:20], read.whole


@functools.lru_cache(maxsize=64)
def _compile_unkept(
    key: str, source: Path, names: tuple[str, ...], kind: str, options: tuple[str, ...], appended: Appended | None
) -> Binary:
    """A build for this process alone: of what the source includes by a macro's name, nothing is known before."""
    return _compile(source, names, kind, list(options), appended)


def _compile(
    source: Path, names: tuple[str, ...], kind: str, options: list[str], appended: Appended | None = None
) -> Binary:
    unit = _unit(source, names, options, appended)
    nvrtc = _nvrtc()
    # The path as the program's name: it is in the compiler's messages and in the line table of the PTX.
    headers = {name: text.encode(errors="surrogateescape") for name, text in unit.headers.items()}
    program = _ok(
        nvrtc.nvrtcCreateProgram(
            unit.text.encode(errors="surrogateescape"),
            str(source).encode(),
            len(headers),
            list(headers.values()),
            [name.encode() for name in headers],
        )
    )
    try:
        for name in names:
            _ok(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        encoded = [o.encode() for o in (*options, f"--pre-include={standard.PRELUDE_NAME}")]
        (failed,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        if failed != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            short = re.sub(rf"{re.escape(str(source.parent))}/", "", log.rstrip("\0")).strip()
            raise CompileError(_told(f"{source.name} for {', '.join(names)}", short or str(failed), unit.empty))
        lowered = {n: _ok(nvrtc.nvrtcGetLoweredName(program, n.encode())).decode() for n in names}
        get = (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if kind == "cubin" else None
        code = _text(*(get or (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)), program)
        return Binary(code if kind == "cubin" else code.rstrip(b"\0"), lowered, log.rstrip("\0"))
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@dataclass(frozen=True)
class _Unit:
    """What NVRTC is handed: the source, and headers by name; `empty` are those that nobody has."""

    text: str
    headers: dict[str, str]
    empty: list[str]


def _unit(source: Path, names: tuple[str, ...], options: list[str], appended: Appended | None) -> _Unit:
    """The source without code of the host's, where there is such code, and stand-ins for headers that NVRTC lacks."""
    defines = dict(o[2:].partition("=")[::2] for o in options if o.startswith("-D"))
    parsed = cplusplus.read(source, {k: v or "1" for k, v in defines.items()}, [HERE])
    behind = appended.text if appended else ""
    if appended and appended.inlined:
        parsed.inline(appended.inlined)
    texts = parsed.without_host_code(appended.roots if appended else names)
    whole = [s.text for s in parsed.sources.values()]
    made, empty = standard.headers(texts.values() if texts else whole, parsed.beside)
    if texts is None and not behind and not parsed.marked:
        return _Unit(whole[0], made, empty)
    texts = texts or {s.name: s.text for s in parsed.sources.values()}
    own = texts.pop(source.name)
    return _Unit(own + behind, {**made, **texts}, empty)


def parameters_of(
    source: Path, name: str, defines: tuple[str, ...], parameters: Sequence[Parameter]
) -> tuple[Parameter, ...]:
    """The parameters of an instance with their types as the compiler has them. Raises as `compile_source` does."""
    roots = tuple(re.findall(r"\w+", name))
    for fields in (True, False):  # of structs; not where one has parts that cannot be named
        asked = Appended(signature.question(name, fields), roots)
        try:
            binary = compile_source(source, (), "sm_90a", "ptx", defines, asked)
        except CompileError:
            if not fields:
                raise
        else:
            return signature.answer(binary.code.decode(), parameters)
    raise AssertionError


VALUE = 'extern "C" __device__ const long long layerbench_value = (long long)({});\n'


def value_of(source: Path, expression: str) -> int:
    """The whole number that a constant expression of the source is. Raises as `compile_source` does, or ValueError."""
    asked = Appended(VALUE.format(expression), tuple(re.findall(r"\w+", expression)))
    text = compile_source(source, (), "sm_90a", "ptx", (), asked).code.decode()
    found = re.search(r"\blayerbench_value(?:\s*=\s*(-?\d+))?;", text)
    if not found:
        raise ValueError(f"the compiler did not tell what {expression} is")
    return int(found[1] or 0)


MESSAGE = re.compile(
    r"^[^\n]*?\b(?:(?P<error>(?:catastrophic |fatal |internal )?error)|warning|remark)\b[^\n]*:", re.M | re.I
)


def _told(what: str, log: str, empty: list[str]) -> str:
    """NVRTC's messages, errors first. Headers that nobody has come next: an unknown name may be theirs."""
    starts = [*MESSAGE.finditer(log)]
    ends = [*(m.start() for m in starts[1:]), len(log)]
    parts = [(not m["error"], log[m.start() : end].strip()) for m, end in zip(starts, ends, strict=True)]
    parts.sort(key=lambda part: part[0])
    lines = [text for _, text in parts] or [log]
    if empty:
        lines.insert(sum(not later for later, _ in parts) or 1, f"not found, so taken as empty: {', '.join(empty)}")
    return f"NVRTC could not compile {what}:\n" + "\n".join(lines)


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
    """NVRTC's version, that of the headers it compiles with, and of what is done to a source before."""
    _, major, minor = _nvrtc().nvrtcVersion()
    ours = hashlib.sha256(
        b"".join(Path(str(m.__file__)).read_bytes() for m in (cplusplus, signature, standard))
    ).hexdigest()[:8]
    return f"{major}.{minor} {' '.join(map(_version_of, HEADERS))} {ours}"


def _version_of(package: str) -> str:
    """By its number, not by where it lies: builds are found again elsewhere. A toolkit is told by its folder."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return os.environ.get("CUDA_HOME", "")


def cuda_headers() -> Path:
    """The folder with cuda_bf16.h: of the nvidia-cuda-runtime wheel, or of the toolkit at $CUDA_HOME."""
    return standard.folders()[0]
