"""What a cold GPU would compile first, made without one: an archive to take along, and what of it is used there.

    manifest.json           architecture, versions, hashes of sources and files
    cache/cuda/…            cubins of NVRTC, under the keys of kernels/cuda/compiler.py
    cache/triton/…          Triton's own cache, its pipeline run to the cubin for the same target as on the card
    cache/data/…            the training step's tokens, where ../shared/data holds text and GPT-2's vocabulary

The keys hold sources, options and versions, so a stale kernel is never found; what is of another version or source is
left in the archive, and said by name. What no archive can hold: torch.compile's code, Triton's launchers (C, compiled
on the card, a fraction of a second each), and tile sizes that only a card can choose.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, cases_of
from bench.core.evidence import cause_of
from bench.core.files import cannot_write, put
from bench.core.process import with_variables
from bench.core.variants import Variant, discover
from bench.gpu.launches import launching_with
from bench.gpu.resources import configurations_of, runs_on
from bench.machine.facts import usable_cores
from bench.text import VAL_FRACTION
from kernels import Unavailable, cache_dir, cuda
from kernels.cuda import standard
from kernels.cuda.compiler import compile_source
from kernels.cuda.compiler import version as nvrtc_version
from reference import contract
from reference.models import MODELS

SCHEMA = 1
ARCH = "sm_90a"
MOST_BYTES = 60_000_000
DTYPES = ("bf16", "fp32")  # the first with all tile sizes of a variant: it is the one that is timed
COMPILER = {"cuda": "NVRTC", "triton": "Triton"}
LOADED = (".json", ".cubin")  # of what Triton keeps of a kernel; the other stages are ten times as large
SHARED = HOME.parent / "shared" / "data"
PARTS = ("cuda", "triton", "data")  # of the cache, that an archive holds
Manifest = dict[str, Any]


# --- making it ---


def prepare(file: Path, layers: str | None, model: str, batch: int) -> int:
    """Compile what the GPU variants of these layers (None: all) launch when they are proved, and timed at a model's
    shapes with so many sequences; write the archive. CannotGoOn where that cannot be."""
    names = contract.layer_names()
    chosen = cli.choose_all(layers, names, "layer") if layers else list(names)
    variants = [v for v in discover() if v.gpu_code and v.layer in chosen and not v.fault and runs_on(v, ARCH)]
    made = make(file, variants, model, batch)
    cli.say(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {made.kernels} kernels for {ARCH} by {_told(made.versions)}")
    if made.data:
        cli.say("with the tokens of ../shared/data")
    for text in made.missing:
        cli.say(f"not in it: {text}")
    return cli.OK if made.kernels else cli.FAILED


@dataclass
class Made:
    """What an archive came to."""

    versions: dict[str, str]
    kernels: int = 0
    data: str = ""
    missing: list[str] = field(default_factory=list)


def make(file: Path, variants: list[Variant], model: str, batch: int) -> Made:
    """Compile into a cache of its own, so that nothing old is packed."""
    made = Made(versions())
    with tempfile.TemporaryDirectory(prefix="layerbench-prepare-") as folder, _cache_in(Path(folder)):
        sources: dict[str, str] = {}
        able = [v for v in variants if COMPILER.get(v.backend) in made.versions]
        made.missing += [f"{v}: {COMPILER.get(v.backend, 'its compiler')} is not installed here"
                         for v in variants if v not in able]  # fmt: skip
        for variant, faults in _compiled(able, model, batch):
            sources[str(variant)] = variant.source_hash()
            made.missing += [f"{variant} {fault}" for fault in faults]
        made.data = tokens()
        try:
            _write(file, Path(folder), sources, made)
        except OSError as error:
            raise cannot_write(file, error) from error
    return made


def versions() -> dict[str, str]:
    """Of the compilers that are installed here."""
    found = {}
    with contextlib.suppress(Unavailable):
        found["NVRTC"] = nvrtc_version()
    with contextlib.suppress(ImportError):
        import triton

        found["Triton"] = triton.__version__
    return found


def _told(found: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in found.items()) or "no compiler"


def _cache_in(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Have this process, and those that it starts, keep what they build in another folder."""
    return with_variables({"LAYERBENCH_CACHE": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")})


def _compiled(variants: list[Variant], model: str, batch: int) -> Iterator[tuple[Variant, list[str]]]:
    """Each variant, compiled, and what of it could not be. In processes: Triton reads its cache's place once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), context) as pool:
        with cli.deaf_to_ctrl_c():
            parts = {pool.submit(compile_variant, v, model, batch): v for v in variants}
        try:
            for number, part in enumerate(as_completed(parts), start=1):
                cli.say(f"[{number} of {len(parts)}] {parts[part]}")
                yield parts[part], part.result()
        except BaseException:  # Ctrl-C: nobody waits for the others
            threading.excepthook = lambda _: None  # the pool's own would tell of its end in a traceback
            for process in multiprocessing.active_children():
                process.kill()
            raise


def compile_variant(variant: Variant, model: str, batch: int) -> list[str]:
    """Compile every kernel that a variant launches; why some could not be, in words."""
    faults: dict[str, None] = {}
    try:
        module = variant.load()
        for dtype in [d for d in DTYPES if d in variant.dtypes]:
            timed = list(timed_cases(variant, dtype, model, batch))
            for configuration in configurations_of(module, dtype, ARCH) if dtype == DTYPES[0] else ("",):
                cases = timed if configuration else [*timed, *proof_cases(variant, dtype, timed)]
                for case in cases:
                    if why := _compile_call(module, case):
                        faults[f"{case.phase} {dtype}: {why}"] = None
    except Exception as error:
        faults[cause_of(error)] = None
    return list(faults)


def timed_cases(variant: Variant, dtype: str, model: str, batch: int) -> Iterator[Case]:
    module, sizes = contract.load(variant.layer), MODELS[model]
    for phase in contract.phases_of(module):
        if variant.has(phase):
            for name, call in sizes.shapes(variant.layer, batch, min(contract.DEFAULT_T, sizes.max_t)).items():
                yield Case(variant.layer, phase, contract.overwriting(module, phase, call.shape, dtype), name, 0)


def proof_cases(variant: Variant, dtype: str, timed: Iterable[Case]) -> Iterator[Case]:
    """Each shape of the proof once."""
    timed = list(timed)
    for phase in dict.fromkeys(case.phase for case in timed):
        shapes = [case.shape for case in timed if case.phase == phase]
        cases = cases_of(variant.layer, phase, dtype, [0, 1], None, shapes)
        first: dict[str, Case] = {}
        for case in cases:
            first.setdefault(str(sorted(case.shape.items(), key=str)), case)
        yield from first.values()


def _compile_call(module: Any, case: Case) -> str:
    """Compile what a call launches, as it is compiled on the card; why not, or ""."""

    def compile_cuda(launch: Any) -> None:
        if isinstance(launch, cuda.Launch):
            build = launch.build
            compile_source(build.source, (build.name,), ARCH, "cubin", build.defines, build.appended)

    try:
        with launching_with(compile_cuda, ARCH, whole=True):
            Arena(case, "cpu", workspace_of(module, case)).call(getattr(module, case.phase))
    except Unavailable:  # a part of the contract that it does not have
        return ""
    except Exception as error:
        if type(error).__name__ == "OutOfResources":  # Triton's: it has no such case on this card either
            return ""
        return f"{case.name}: {cause_of(error)}"
    return ""


def tokens() -> str:
    """Encode the text that lies beside the repository, where there is any; its folder in the cache."""
    texts, vocabulary = sorted(SHARED.glob("*.txt")), SHARED / "gpt2.tiktoken"
    if not texts or not vocabulary.exists():
        return ""
    try:
        from bench.text.corpus import encode  # needs tiktoken
    except ImportError:
        return ""
    folder, _ = encode(texts[0], None, vocabulary, VAL_FRACTION)
    return folder.relative_to(cache_dir()).as_posix()


def _write(file: Path, folder: Path, sources: dict[str, str], made: Made) -> None:
    """The manifest first. Kernels that are over the limit are left out, and counted as missing."""
    contents: dict[str, bytes] = {}
    left, over = MOST_BYTES, 0
    for group in _groups(folder):
        files = {f"cache/{p.relative_to(folder).as_posix()}": _of_use(p) for p in group}
        size = len(_packed(files))  # alone it is hardly larger than in the archive
        if size > left:
            over += 1
            continue
        left -= size
        contents |= files
        made.kernels += any(name.endswith(".cubin") for name in files)
    if over:
        made.missing.append(f"{over} kernels: the archive would be larger than {MOST_BYTES / 1e6:.0f} MB")
    manifest: Manifest = {
        "schema": SCHEMA,
        "arch": ARCH,
        "versions": made.versions,
        "sources": sources,
        "data": made.data,
        "missing": made.missing,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    put(file, _packed({"manifest.json": json.dumps(manifest, indent=1).encode(), **contents}))


def _groups(folder: Path) -> Iterator[list[Path]]:
    """What belongs together: tokens first, a source's cubin (PTX, where that was asked for) with its names, a kernel
    of Triton's with what it is loaded from."""
    yield [p for p in sorted((folder / "data").rglob("*.bin"))] + sorted((folder / "data").rglob("about.json"))
    for names in sorted((folder / "cuda").glob("*.json")):
        yield [names, *(p for kind in (".cubin", ".ptx") if (p := names.with_suffix(kind)).exists())]
    for kernel in sorted((folder / "triton").glob("*")):
        if kernel.is_dir():
            yield sorted(p for p in kernel.iterdir() if p.suffix in LOADED)


def _of_use(file: Path) -> bytes:
    """A file's content; Triton's list of a kernel's files without those that are only read by people."""
    content = file.read_bytes()
    if not file.name.startswith("__grp__"):
        return content
    document = json.loads(content)
    document["child_paths"] = {n: n for n in document["child_paths"] if PurePosixPath(n).suffix in LOADED}
    return json.dumps(document).encode()


def _packed(contents: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", compresslevel=6) as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


# --- using it ---


def use(file: Path) -> Path | None:
    """Put into the cache what fits the compilers and sources here, and say what does not; the tokens' folder, if it
    has any. Never an error but for a file that is no archive: what is missing is compiled."""
    try:
        with tarfile.open(file) as archive:
            manifest = json.load(_member(archive, "manifest.json"))
            if manifest["schema"] != SCHEMA:
                raise ValueError(f"schema {manifest['schema']}, this program reads {SCHEMA}")
            leave_the_toolkit_out(manifest["versions"].get("NVRTC"))
            parts = fitting(manifest)
            taken, damaged = _unpack(archive, manifest["files"], parts)
        for text in differences(manifest, taken):
            cli.say(f"prepared: {text}")
        if damaged:
            cli.say(f"prepared: {damaged} files are damaged, and left out")
        data = cache_dir() / _safe(manifest["data"]) if manifest["data"] else None
        return data / "train.bin" if data and (data / "train.bin").exists() else None
    except (OSError, tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotGoOn(f"{file} cannot be used: {error} (bench.suite --prepare makes one)", cli.USAGE) from error


def leave_the_toolkit_out(wanted: str | None) -> None:
    """For headers that no package has, keys tell $CUDA_HOME: where that is all that is between the compiler here and
    the one that made the archive, it is $CUDA_PATH from now on, which compilers here do not ask for. Headers come from
    the packages in both cases."""
    home = os.environ.get("CUDA_HOME")
    if not home or wanted in (None, versions().get("NVRTC")):
        return
    del os.environ["CUDA_HOME"]
    _ask_again()
    if versions().get("NVRTC") == wanted:
        os.environ.setdefault("CUDA_PATH", home)  # where compute-sanitizer may be
        cli.say("prepared: without $CUDA_HOME, whose headers are not needed")
    else:
        os.environ["CUDA_HOME"] = home
        _ask_again()


def _ask_again() -> None:
    nvrtc_version.cache_clear()
    standard.folders.cache_clear()


def fitting(manifest: Manifest) -> set[str]:
    """Which parts of the cache may be taken."""
    here = versions()
    parts = {b for b, name in COMPILER.items() if name in here and here[name] == manifest["versions"].get(name)}
    return {*parts, "data"}


def differences(manifest: Manifest, taken: dict[str, int]) -> Iterator[str]:
    """What is used, and by name what is not and why."""
    here = versions()
    variants = {str(v): v.source_hash() for v in discover() if v.gpu_code}
    for backend, name in COMPILER.items():
        then, now = manifest["versions"].get(name), here.get(name)
        of_it = [v for v in manifest["sources"] if v.split()[1].startswith(f"{backend}.")]
        if not of_it or then is None:
            yield f"nothing by {name} in it"
        elif then != now:
            yield f"made by {name} {then}, here is {now or 'none'}: compiled anew: {', '.join(of_it)}"
        else:
            yield f"{taken.get(backend, 0)} files of {name} {then} are used"
    if changed := [v for v, source in manifest["sources"].items() if variants.get(v) != source]:
        yield f"made of other sources: compiled anew: {', '.join(changed)}"
    for text in manifest["missing"]:
        yield f"not in it: {text}"


def _unpack(archive: tarfile.TarFile, files: dict[str, str], parts: set[str]) -> tuple[dict[str, int], int]:
    """(files that were put into the cache, by part; how many were damaged). What is there already stays."""
    taken: dict[str, int] = {}
    damaged = 0
    roots = {"cuda": cache_dir() / "cuda", "triton": triton_cache(), "data": cache_dir() / "data"}
    for name, digest in files.items():
        _, part, *rest = PurePosixPath(name).parts
        if part not in parts or part not in PARTS:
            continue
        content = _member(archive, name).read()
        if hashlib.sha256(content).hexdigest() != digest:
            damaged += 1
            continue
        to = roots[part] / _safe("/".join(rest))
        if part == "triton" and to.name.startswith("__grp__"):
            content = _here(content, to.parent)
        if not to.exists():
            put(to, content)
        taken[part] = taken.get(part, 0) + 1
    return taken, damaged


def triton_cache() -> Path:
    """Where kernels/triton/__init__.py has Triton keep what it compiles."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or cache_dir() / "triton")


def _here(group: bytes, folder: Path) -> bytes:
    """Triton's list of a kernel's files has absolute paths: those of this machine."""
    document = json.loads(group)
    document["child_paths"] = {name: str(folder / name) for name in document["child_paths"]}
    return json.dumps(document).encode()


def _member(archive: tarfile.TarFile, name: str) -> io.BufferedReader:
    member = archive.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is no file")
    return member  # type: ignore[return-value]


def _safe(name: str) -> Path:
    """A name inside a folder. ValueError for one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"the name {name!r} leads out of the cache")
    return Path(path)
