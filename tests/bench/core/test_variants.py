"""Discovery: a path is a name; what cannot be a variant is an error that names the file, and elsewhere costs itself."""

import os
import re
from pathlib import Path

import pytest
import torch

from bench.cli import CannotGoOn
from bench.core import variants
from bench.core.variants import Misplaced, Variant
from kernels import Unavailable

GOOD = '"""Adds."""\n\ndef forward(a, b, *, out):\n    pass\n'


def write(root: Path, path: str, text: str | bytes = GOOD) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def outside(root: Path) -> list[variants.Variant]:
    return [v for v in variants.discover((root,)) if v.path.is_relative_to(root.resolve())]


def test_a_file_is_a_variant_by_its_path(tmp_path):
    write(
        tmp_path,
        "torch/residual/mine.py",
        GOOD.replace("\n\ndef", '\n\nDTYPES = ("fp32",)\nDETERMINISTIC = True\n\ndef'),
    )
    (found,) = outside(tmp_path)
    assert (found.layer, found.name, found.story) == ("residual", "torch.mine", "Adds.")
    assert found.dtypes == ("fp32",) and found.deterministic is True
    assert found.has("forward") and not found.has("backward") and not found.own_code
    assert callable(found.load().forward)


def test_reading_does_not_run_the_file(tmp_path):
    write(tmp_path, "torch/residual/mine.py", GOOD + '\nraise RuntimeError("imported")\n')
    (found,) = outside(tmp_path)
    with pytest.raises(RuntimeError, match="imported"):
        found.load()


def test_a_variant_of_another_root_imports_what_lies_beside_it(tmp_path):
    imports = "from . import _twice\nfrom ..shared import ONE\n"
    write(tmp_path, "torch/residual/mine.py", GOOD.replace("\n\ndef", f"\n\n{imports}\n\ndef", 1))
    helper = write(tmp_path, "torch/residual/_twice.py", "TWO = 2\n")
    write(tmp_path, "torch/shared.py", "ONE = 1\n")
    (found,) = outside(tmp_path)
    module = found.load()
    assert (module._twice.TWO, module.ONE) == (2, 1) and found.load() is module
    before = found.source_hash()
    helper.write_text("TWO = 3\n")
    assert found.source_hash() != before


WRONG = pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("torch/residul/mine.py", GOOD, "no layer 'residul'; did you mean 'residual'"),
        ("tritn/residual/mine.py", GOOD, "no backend 'tritn'; did you mean 'triton'"),
        ("residual/mine.py", GOOD, "<backend>/<layer>/<variant>.py"),
        ("torch/residual/deep/mine.py", GOOD, "<backend>/<layer>/<variant>.py"),
        ("torch/residual/mine.py", GOOD.replace('"""Adds."""', ""), "tells no story"),
        ("torch/residual/mine.py", '"""Adds."""\n', "neither forward nor backward"),
        ("torch/residual/mine.py", GOOD.replace("(a, b, *", "(x, y, *"), r"residual wants forward\(a, b, \*, out\)"),
        ("torch/residual/mine.py", GOOD.replace("*, out", "out"), "residual wants"),
        ("torch/residual/mine.py", GOOD + "def backward(dout):\n    pass\n", "residual has none"),
        ("torch/residual/mine.py", GOOD + "def forward(:\n", "line 5"),
        ("torch/residual/mine.py", GOOD + "DTYPES = list(x)\n", "must be a literal"),
        ("torch/residual/mine.py", GOOD + 'DTYPES = ("fp32", "float16")\n', "'float16', which is none of .*fp16"),
        ("torch/residual/mine.py", GOOD.replace("out)", "out, workspace)"), "takes a workspace, but no workspace"),
        ("torch/residual/mine.py", GOOD + "REQUIRES = 5\n", "REQUIRES cannot be 5"),
        ("torch/residual/mine.py", GOOD + "KERNELS = ('*', 'gemm*')\n", "names no kernel"),
        ("torch/residual/mine.py", GOOD + "SPILLS = 'many'\n", "SPILLS cannot be"),
        ("torch/residual/mine.py", GOOD + "SPILLS = {90: 4}\n", "SPILLS cannot be"),
        ("torch/residual/mine.py", GOOD + "X = " + "-" * 20_000 + "1\n", "mine.py"),  # too deep for the parser
        ("torch/residual/mine.py", GOOD + "\0", "null bytes"),
        ("torch/residual/mine.py", b'"""\xff."""\n', "line 1|cannot be read"),
        ("torch/residual/mine.py", b"# coding: latin-1\n" + GOOD.encode() + b"# \xe9\n", "line 6 is not UTF-8"),
        ("torch/residual/mine.py", "#" * (variants.MOST_SOURCE_BYTES + 1), "more than 4 MiB"),
        ("torch/residual/mi\nne.py", GOOD, "name has a character"),
    ],
)


@WRONG
def test_what_cannot_be_a_variant_is_an_error_that_names_the_file(tmp_path, monkeypatch, path, text, says):
    file = write(tmp_path, path, text)
    monkeypatch.setattr(variants, "KERNELS", tmp_path.resolve())
    with pytest.raises(Misplaced, match=says) as error:
        variants.discover()
    assert file.name in str(error.value)


@WRONG
def test_elsewhere_it_costs_itself_alone_and_says_why(tmp_path, capsys, path, text, says):
    file = write(tmp_path, path, text)
    write(tmp_path, "torch/residual/right.py")
    found = {v.stem: v for v in outside(tmp_path)}
    assert found.pop("right").fault == ""
    told = capsys.readouterr().err
    assert re.search(says, told) and told.startswith("skipped: ") and told.count("\n") == 1
    if path.startswith("torch/residual/mine"):
        fault = variants.unavailable(found.pop("mine"), "cpu", "fp32") or ""
        assert re.search(says, fault) and file.name in fault
    assert not found and len(variants.discover()) > 30


def test_what_is_no_file_is_not_waited_for(tmp_path):
    folder = tmp_path / "torch" / "residual"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe.py")
    (folder / "folder.py").mkdir()
    (folder / "nothing.py").symlink_to(tmp_path / "gone.py")
    assert {v.stem: v.fault.endswith("is no file") for v in outside(tmp_path)} == dict.fromkeys(
        ("pipe", "folder", "nothing"), True
    )


def test_a_folder_of_other_things_is_told_in_a_few_lines(tmp_path, capsys):
    for i in range(30):
        write(tmp_path, f"script{i}.py", "print()")
    write(tmp_path, ".venv/lib/site.py", "print()")
    assert outside(tmp_path) == []
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == variants.MOST_NOTICES + 1 and f"{30 - variants.MOST_NOTICES} more files" in lines[-1]


def test_a_story_steers_no_terminal_and_can_be_written_down(tmp_path):
    story = "Adds \\x1b[31mred\\x1b]0;title\\x07 \\udc80 \\u202eback " + "long " * 1000
    write(tmp_path, "torch/residual/mine.py", GOOD.replace("Adds.", story))
    (found,) = outside(tmp_path)
    assert found.story.startswith("Adds red \ufffd \ufffdback long") and len(found.story) < 400
    assert found.story.encode().isascii() is False and "\x1b" not in found.story


def test_a_variant_of_another_root_is_known_as_one(tmp_path):
    write(tmp_path, "torch/residual/mine.py")
    assert {v.path.is_relative_to(tmp_path.resolve()): v.outside for v in variants.discover((tmp_path,))} == {
        True: True,
        False: False,
    }


def test_two_variants_of_one_name_are_an_error(tmp_path):
    write(tmp_path / "one", "torch/residual/mine.py")
    write(tmp_path / "two", "torch/residual/mine.py")
    with pytest.raises(Misplaced, match="are both"):
        variants.discover((tmp_path / "one", tmp_path / "two"))


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(Misplaced, match="no such folder"):
        variants.discover((tmp_path / "nothing",))


def test_every_variant_of_this_repository_is_read_and_has_a_home():
    names = {(v.layer, v.name) for v in variants.discover()}
    files = [p for p in variants.KERNELS.glob("*/*/*.py") if not p.stem.startswith("_")]
    assert len(names) == len(files) > 30


def test_the_entry_point_group_adds_a_root(tmp_path, monkeypatch):
    write(tmp_path / "my_kernels", "torch/residual/mine.py")
    (tmp_path / "my_kernels" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    class Entry:
        name, value = "mine", "my_kernels"

    monkeypatch.setattr(variants.importlib.metadata, "entry_points", lambda group: [Entry()])
    assert "torch.mine" in {v.name for v in variants.discover()}


def test_a_typo_in_a_name_gets_a_suggestion(tmp_path):
    write(tmp_path, "torch/residual/mine.py")
    with pytest.raises(CannotGoOn, match="did you mean"):
        variants.find(variants.discover((tmp_path,)), "residual", "torch.mne")


def test_the_source_hash_follows_the_files_of_the_variant(tmp_path):
    file = write(tmp_path, "cpu/residual/mine.py")
    (found,) = outside(tmp_path)
    before = found.source_hash()
    write(tmp_path, "cpu/residual/mine.cpp", "// code")
    with_cpp = found.source_hash()
    file.write_text(GOOD + "# more\n")
    assert len({before, with_cpp, found.source_hash()}) == 3


@pytest.mark.parametrize(
    ("backend", "constants", "dtype", "says"),
    [
        ("torch", "", "fp16", "does not support fp16"),
        ("torch", 'REQUIRES = ("cuda",)', "fp32", "needs an NVIDIA GPU"),
        ("torch", 'REQUIRES = ("sm90",)', "fp32", "needs an NVIDIA GPU"),
        ("torch", 'REQUIRES = "no_such_package_anywhere"', "fp32", "needs the Python package"),
        ("triton", 'REQUIRES = ("sm100",)', "fp32", "the simulator knows instructions up to sm90"),
        ("torch", "", "fp32", None),
    ],
)
def test_why_a_variant_cannot_run(tmp_path, backend, constants, dtype, says):
    write(tmp_path, f"{backend}/residual/mine.py", f'"""Adds."""\n{constants}\n' + GOOD.partition("\n")[2])
    (found,) = outside(tmp_path)
    reason = variants.unavailable(found, "cpu", dtype)
    assert reason is None if says is None else says in (reason or "")


def test_without_triton_its_kernels_say_so(tmp_path, monkeypatch):
    write(tmp_path, "triton/residual/mine.py", GOOD)
    (found,) = outside(tmp_path)
    monkeypatch.setattr("bench.simulate.importlib.util.find_spec", lambda name: None)
    assert "Triton is not installed" in (variants.unavailable(found, "cpu", "fp32") or "")


def test_without_a_compiler_cpu_kernels_say_so(tmp_path, monkeypatch):
    def no_compiler():
        raise Unavailable("no C++ compiler: install g++")

    monkeypatch.setattr("kernels.cpu.find_compiler", no_compiler)
    write(tmp_path, "cpu/residual/mine.py")
    (found,) = outside(tmp_path)
    assert "no C++ compiler" in (variants.unavailable(found, "cpu", "fp32") or "")


@pytest.mark.parametrize(
    ("need", "capability", "meets"),
    [
        ("cuda", 75, True),
        ("sm80", 80, True),
        ("sm80", 90, True),
        ("sm90", 80, False),
        ("sm90a", 90, True),
        ("sm90a", 100, False),
        ("sm90a", 80, False),
    ],
)
def test_a_gpu_meets_a_minimum_or_one_architecture_alone(need, capability, meets):
    assert (variants._too_old(need, capability) is None) is meets


def test_the_source_hash_knows_nothing_of_bytecode_and_what_is_hidden(tmp_path):
    """Whoever has run a kernel has the one lying about, another for each version of Python; editors leave the other."""
    layer = write(tmp_path, "cuda/residual/mine.py").parent
    (found,) = outside(tmp_path)
    before = found.source_hash()
    for folder in (layer.parent, layer, layer / found.stem):
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "__pycache__" / f"{found.stem}.cpython-312.pyc").write_bytes(b"bytecode")
        (folder / ".DS_Store").write_bytes(b"hidden")
        (folder / ".checkpoints").mkdir()
        (folder / ".checkpoints" / f"{found.stem}.py").write_text(GOOD)
    assert found.source_hash() == before


def test_the_source_hash_follows_a_backends_shared_headers(tmp_path):
    write(tmp_path, "cuda/residual/mine.py")
    (found,) = outside(tmp_path)
    before = found.source_hash()
    (tmp_path / "cuda" / "common").mkdir()
    (tmp_path / "cuda" / "common" / "packed.cuh").write_text("// wider")
    assert found.source_hash() != before


def test_who_asks_what_a_gpu_can_do_makes_no_context(monkeypatch):
    from kernels.cuda import gpu

    def context(*_):
        raise AssertionError("torch makes a context for this")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", context)
    monkeypatch.setattr(gpu, "capability_of", lambda device: {0: (8, 0), 3: (9, 0)}[device])
    variants._missing.cache_clear()
    try:
        assert variants._missing("sm90", "cuda:3") is None
        assert variants._missing("sm90", "cuda") == "needs sm90, this GPU is sm80"
    finally:
        variants._missing.cache_clear()


@pytest.mark.parametrize(
    "changed",
    ["cuda/gelu/helper.h", "cuda/gelu/deeper.h", "cuda/gelu/tiles.py", "parts/shapes.py", "cuda/gelu/mine.cu"],
)
def test_a_variants_source_is_all_that_it_includes_and_imports(tmp_path, changed):
    texts = {
        "cuda/gelu/mine.py": f"{GOOD}from cuda.gelu.tiles import WIDTH\n",
        "cuda/gelu/mine.cu": '#include "helper.h"\n',
        "cuda/gelu/helper.h": "#include <deeper.h>\n",
        "cuda/gelu/deeper.h": "// 1\n",
        "cuda/gelu/tiles.py": "import parts.shapes\nWIDTH = 1\n",
        "cuda/gelu/other.py": GOOD,
        "parts/shapes.py": "SHAPE = 1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    mine, other = (
        Variant("gelu", "cuda", stem, tmp_path / f"cuda/gelu/{stem}.py", "Made up.", frozenset({"forward"}))
        for stem in ("mine", "other")
    )
    before, untouched = mine.source_hash(), other.source_hash()
    (tmp_path / changed).write_text(texts[changed] + "# changed\n")
    assert mine.source_hash() != before and other.source_hash() == untouched


def test_a_library_is_looked_for_in_pythons_packages_and_not_loaded(tmp_path, monkeypatch):
    v = next(v for v in variants.discover() if v.name == "cuda.cublaslt")
    monkeypatch.setitem(variants.LIBRARIES, "cublaslt", ("vendor_of_a_test", "*/lib/libcublasLt.so.*"))
    monkeypatch.syspath_prepend(tmp_path)
    assert not variants.libraries_lie_here(v), "there is no such package"
    library = tmp_path / "vendor_of_a_test" / "cu13" / "lib" / "libcublasLt.so.13"
    library.parent.mkdir(parents=True)
    assert not variants.libraries_lie_here(v), "the package has no such file"
    library.write_bytes(b"")
    assert variants.libraries_lie_here(v)
    assert variants.libraries_lie_here(next(v for v in variants.discover() if v.name == "cuda.naive"))
