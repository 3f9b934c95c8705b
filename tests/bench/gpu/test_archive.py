"""What is compiled for a card without one: found there by the same keys; what does not fit is said by name."""

import hashlib
import io
import json
import os
import random
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.cli import CannotGoOn
from bench.core.variants import Variant, discover, find
from bench.gpu import archive
from kernels.cuda import compiler

pytestmark = pytest.mark.skipif(not find_spec("triton") or not find_spec("cuda"), reason="needs Triton and NVRTC")


@pytest.fixture(scope="module")
def variants() -> list[Variant]:
    known = discover()
    return [find(known, "residual", name) for name in ("cuda.naive", "triton.block")]


@pytest.fixture(scope="module")
def made(tmp_path_factory, variants) -> Path:
    """An archive of two variants at a small model's shapes, without tokens."""
    file = tmp_path_factory.mktemp("archive") / "prepared.tar.gz"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(archive, "tokens", lambda: "")
        patched.setattr(archive, "usable_cores", lambda: 2)
        of_it = archive.make(file, variants, "gpt2-tiny", 1)
    assert not of_it.missing and of_it.kernels >= 4, "two dtypes of two variants"
    return file


@pytest.fixture
def cold(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache" / "triton"))
    return tmp_path / "cache"


def contents(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened}  # type: ignore[union-attr]


def changed(file: Path, to: Path, manifest: dict | None = None, files: dict[str, bytes] | None = None) -> Path:
    """The archive with another manifest (these fields), or other contents of files."""
    inside = contents(file)
    told = json.loads(inside["manifest.json"]) | (manifest or {})
    inside |= {"manifest.json": json.dumps(told).encode()} | (files or {})
    with tarfile.open(to, "w:gz") as opened:
        for name, content in inside.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return to


def test_what_was_compiled_is_loaded_and_not_compiled_again(made, cold, monkeypatch, capsys):
    assert archive.use(made) is None, "no tokens in it"
    said = capsys.readouterr().err
    assert "of NVRTC" in said and "of Triton" in said and said.count("are used") == 2 and "anew" not in said

    def never(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "_compile", never)
    source = Path(compiler.HERE) / "residual" / "naive.cu"
    for dtype in ("float", "__nv_bfloat16"):
        binary = compiler.compile_source(source, (f"residual_forward<{dtype}>",), "sm_90a", "cubin")
        assert binary.code[:4] == b"\x7fELF"
    with pytest.raises(AssertionError, match="compiled again"):
        compiler.compile_source(source, ("residual_forward<float>",), "sm_80", "cubin")

    groups = list((cold / "triton").glob("*/__grp__*.json"))
    assert groups
    for group in groups:
        paths = json.loads(group.read_text())["child_paths"].values()
        assert all(Path(p).is_file() and Path(p).parent == group.parent for p in paths), "of this machine"
        assert any(p.endswith(".cubin") and Path(p).read_bytes()[:4] == b"\x7fELF" for p in paths)


@pytest.mark.slow
def test_triton_finds_it_under_its_own_key(made, cold, variants):
    """The same call, compiled for the same target, is in the cache already: nothing is added."""
    archive.use(made)
    before = {p.name for p in (cold / "triton").iterdir()}
    (triton,) = [v for v in variants if v.backend == "triton"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(archive, "tokens", lambda: "")
        patched.setattr(archive, "usable_cores", lambda: 1)
        again = archive.make(cold.parent / "again.tar.gz", [triton], "gpt2-tiny", 1)
    keys = {name.split("/")[2] for name in contents(cold.parent / "again.tar.gz") if "/triton/" in name}
    assert again.kernels and keys and keys <= before


def test_what_another_version_made_is_left_and_said_by_name(made, cold, tmp_path, capsys):
    versions = archive.versions() | {"Triton": "3.5.0"}
    archive.use(changed(made, tmp_path / "other.tar.gz", {"versions": versions}))
    said = capsys.readouterr().err
    assert "made by Triton 3.5.0, here is" in said and "compiled anew: residual triton.block" in said
    assert not (cold / "triton").exists() and list((cold / "cuda").iterdir())


def test_a_toolkit_beside_the_packages_is_no_other_version(made, cold, tmp_path, monkeypatch, capsys):
    """An image has the runtime's package, and the rest of the headers at $CUDA_HOME, where nobody reads them."""
    monkeypatch.setattr(compiler, "HEADERS", ("nvidia-cuda-runtime", "layerbench-no-such-package"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    archive._ask_again()
    try:
        prepared = changed(made, tmp_path / "elsewhere.tar.gz", {"versions": archive.versions()})
        other = archive.versions() | {"NVRTC": "12.0"}
        for versions, left, used in ((other, "/opt/cuda", False), (archive.versions(), None, True)):
            monkeypatch.setenv("CUDA_HOME", "/opt/cuda")
            archive._ask_again()
            assert "/opt/cuda" in archive.versions()["NVRTC"]
            archive.use(changed(prepared, tmp_path / "it.tar.gz", {"versions": versions}))
            assert os.environ.get("CUDA_HOME") == left and (os.environ.get("CUDA_PATH") == "/opt/cuda") is used
            assert ("files of NVRTC" in capsys.readouterr().err) is used
    finally:
        monkeypatch.undo()
        archive._ask_again()


def test_what_was_made_of_other_sources_is_said_by_name(made, cold, tmp_path, capsys):
    sources = {"residual cuda.naive": "0" * 16, "residual gone.away": "1" * 16}
    archive.use(changed(made, tmp_path / "other.tar.gz", {"sources": sources}))
    assert "other sources: compiled anew: residual cuda.naive, residual gone.away" in capsys.readouterr().err


def test_what_was_damaged_on_the_way_is_left_out_and_counted(made, cold, tmp_path, capsys):
    name = next(n for n in contents(made) if n.startswith("cache/cuda/") and n.endswith(".cubin"))
    archive.use(changed(made, tmp_path / "other.tar.gz", files={name: b"damaged"}))
    assert "1 files are damaged" in capsys.readouterr().err
    assert not (cold / "cuda" / Path(name).name).exists()


@pytest.mark.parametrize("name", ["cache/cuda/../../../out", "cache/cuda//out", "cache/triton/.."])
def test_no_name_leads_out_of_the_cache(made, cold, tmp_path, name):
    content = b"x"
    files = {name: hashlib.sha256(content).hexdigest()}
    bad = changed(made, tmp_path / "bad.tar.gz", {"files": files}, {name: content})
    try:
        archive.use(bad)
    except CannotGoOn as error:
        assert "leads out" in str(error)
    assert not list(tmp_path.glob("out")) and not list(tmp_path.parent.glob("out"))


def test_no_archive_is_said_in_a_line(cold, tmp_path):
    (tmp_path / "text").write_text("no archive")
    for file in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(CannotGoOn, match="cannot be used"):
            archive.use(file)


@pytest.mark.slow
def test_what_cannot_be_compiled_is_named_and_the_rest_goes_on(tmp_path, cold, variants, monkeypatch, capsys):
    home = tmp_path / "kernels" / "cuda" / "residual"
    home.mkdir(parents=True)
    (home / "broken.cu").write_text("template <typename T> __global__ void broken(T* out) { no }")
    (home / "broken.py").write_text(
        '"""Does not compile."""\nfrom kernels.cuda import Kernel\nkernel = Kernel("broken.cu", "broken")\n'
        "def forward(a, b, *, out):\n    kernel(grid=1, block=1)(out)\n"
    )
    broken = find(discover((tmp_path / "kernels",)), "residual", "cuda.broken")
    monkeypatch.setattr(archive, "tokens", lambda: "")
    monkeypatch.setattr(archive, "usable_cores", lambda: 2)
    made = archive.make(tmp_path / "some.tar.gz", [variants[0], broken], "gpt2-tiny", 1)
    assert made.kernels >= 2 and any("cuda.broken" in text and "CompileError" in text for text in made.missing)
    assert archive.use(tmp_path / "some.tar.gz") is None
    assert "not in it: residual cuda.broken" in capsys.readouterr().err


def test_over_its_limit_it_leaves_kernels_out_and_says_how_many(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / "cache" / "cuda").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / "cuda" / f"{name}.json").write_text("{}")
        (tmp_path / "cache" / "cuda" / f"{name}.cubin").write_bytes(random.Random(name).randbytes(1000))
    monkeypatch.setattr(archive, "MOST_BYTES", 3000)
    made = archive.Made({})
    archive._write(tmp_path / "some.tar.gz", tmp_path / "cache", {}, made)
    assert made.kernels == 2 and made.missing == ["1 kernels: the archive would be larger than 0 MB"]
    assert (tmp_path / "some.tar.gz").stat().st_size <= 3000 + 1000, "the manifest comes on top"


def test_ptx_that_was_compiled_on_the_way_goes_with_its_names(tmp_path):
    # What tells a kernel's parameters is asked for as PTX, and has no cubin.
    (tmp_path / "cache" / "cuda").mkdir(parents=True)
    (tmp_path / "cache" / "cuda" / "a.json").write_text("{}")
    (tmp_path / "cache" / "cuda" / "a.ptx").write_text(".version 8.0")
    made = archive.Made({})
    archive._write(tmp_path / "some.tar.gz", tmp_path / "cache", {}, made)
    assert made.kernels == 0 and {"cache/cuda/a.json", "cache/cuda/a.ptx"} <= contents(tmp_path / "some.tar.gz").keys()
