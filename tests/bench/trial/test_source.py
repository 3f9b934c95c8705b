"""What a source says that it must not: each kind is named by its line, and every honest variant comes out clean."""

import py_compile
import textwrap
import time
from pathlib import Path

import pytest

from bench import HOME
from bench.core import BACKENDS
from bench.core.variants import Variant, discover
from bench.trial import native
from bench.trial.source import foreign

ALL = discover()
HEAD = '"""Made up."""\n'
FORWARD = "def forward(a, b, *, out):\n"
CPP = (
    'from kernels.cpu import Kernel\n\nkernel = Kernel("made_up.cpp", "add")\n\n\n'
    + FORWARD
    + "    kernel(out, a, b)\n"
)


def variant(root: Path, text: str, backend: str = "cpu", layer: str = "residual", **more) -> Variant:
    path = root / "outside" / backend / layer / "made_up.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + textwrap.dedent(text))
    return Variant(layer, backend, "made_up", path, "Made up.", frozenset({"forward"}), **more)


def body(lines: str) -> str:
    """`import torch`, and a forward of these lines, which begin at line 5."""
    return "import torch\n\n" + FORWARD + textwrap.indent(textwrap.dedent(lines).strip("\n"), "    ") + "\n"


@pytest.fixture
def said(tmp_path):
    """What is said of a made-up source: said("import ctypes")."""
    return lambda text, *rest, **more: foreign(variant(tmp_path, text, *rest, **more))


# --- the honest ones ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_honest_variant_is_clean(backend):
    mine = [v for v in ALL if v.backend == backend]
    assert mine and {f"{v.layer} {v.name}": told for v in mine if (told := foreign(v))} == {}


def test_the_examples_are_clean():
    plugin = HOME / "examples" / "liger_plugin" / "layerbench_liger"
    found = [
        Variant(p.parent.name, p.parents[1].name, p.stem, p, "", frozenset({"forward"})) for p in plugin.rglob("*.py")
    ]
    found = [v for v in found if v.layer != plugin.name]
    assert found and not [told for v in found if (told := foreign(v))]


@pytest.mark.parametrize(
    "text",
    [
        "import math\nimport torch\nfrom kernels import Unavailable\nfrom kernels.cpu import Kernel\n"
        'k = Kernel("x.cpp", "f")\nROWS = math.prod((2, 3))\n\n\ndef forward(a, b, *, out):\n'
        "    if a.dtype == torch.float32 and out.stride(-1) != 1:\n"
        '        raise Unavailable("strides")\n'
        "    rows = a.view(-1, a.shape[-1]).reshape(-1).T\n    sizes = list(a.shape)\n    sizes.sort()\n"
        "    k(out, rows, b.transpose(0, 1), sizes.index(1), sizes.copy(), a.data_ptr(), a.shape.count(1))\n",
        "import torch\n\n\ndef forward(a, b, *, out):\n    n = out.numel()\n    n += 1\n    torch.finfo(a.dtype).max\n"
        "    with torch.cuda.device(a.device):\n        parts = a.contiguous().split(2)\n        parts.count(1)\n",
        "def unpacked(input, vars):\n    return input, vars\n\n\n" + FORWARD + "    unpacked(a, b)\n",
        # Its own objects may have names that tensors have too.
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Tile:\n    max: int\n\n    def sum(self):\n"
        "        return self.max + 1\n\n\ndef forward(a, b, *, out):\n    Tile(3).sum() + Tile(4).max\n",
        # What tuning needs, where a call never comes by.
        "import json\nimport time\n\nimport torch\n\nFOUND = {}\n\n\ndef prepare(shape, phase):\n"
        "    FOUND[phase] = measured(torch.randn(4), torch.ones(4))\n\n\ndef measured(a, b):\n"
        "    torch.cuda.synchronize()\n"
        "    start = time.perf_counter()\n    forward(a, b, out=torch.empty(4))\n    json.dumps(1)\n"
        "    return time.perf_counter() - start\n\n\ndef forward(a, b, *, out):\n    pass\n",
        "import os\n\nTHREADS = os.cpu_count()\n" + FORWARD + '    os.environ.get("OMP_NUM_THREADS")\n',
    ],
)
def test_what_a_launcher_may_do_is_clean(said, text):
    assert said(text) == []


def test_a_package_that_it_says_it_needs_and_its_operators_are_clean(said):
    text = "import tilelang\n\nimport torch\n" + FORWARD + "    torch.ops.tilelang.add(a, b, out)\n"
    assert said(text, "cuda", requires=("tilelang",), kernels=("add_*",)) == []
    assert said(text, "cuda", requires=("tilelang",)) == ["line 6: torch.ops.tilelang.add"], "no kernel of it is named"
    assert said(text, "cuda")[0] == "line 2: imports tilelang"
    aten = text.replace("tilelang.add", "aten.add").replace("import tilelang\n", "")
    assert said(aten, "cuda", requires=("aten",), kernels=("add_*",)), "whatever it says it needs"


# --- own code that is not its own ---


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import numpy as np",
            "import numpy.linalg",
            "from scipy import linalg",
            "import cupy",
            "import numba",
            "import jax",
        ),
        *(
            "import ctypes",
            "from ctypes import CDLL",
            "import cffi",
            "import subprocess",
            "import multiprocessing.pool",
        ),
        *("import threading", "from concurrent.futures import ThreadPoolExecutor", "import asyncio", "import _thread"),
        *("import signal", "import gc", "import builtins", "import copy", "import runpy"),
        *("import mmap", "import socket", "import atexit", "import pickle", "import some_library"),
        *("from bench.trial import truth", "from reference.residual import forward as truth", "import tests.fake_gpu"),
        *("import torch.nn.functional as F", "from torch import add", "from torch.nn import functional"),
        *(
            "from torch.utils import cpp_extension",
            "from torch import *",
            "from math import *",
            "from kernels.cpu import *",
        ),
        *("from kernels.torch.residual.eager import forward as theirs", "from kernels.triton import many"),
        *("from kernels import torch as theirs", "import kernels.torch.residual.eager as theirs"),
    ],
)
def test_an_import_is_named(said, line):
    told = said(f"{line}\n\n\n{FORWARD}    pass\n")
    assert told and all(text.startswith("line 2: ") for text in told), told
    inside = said(f"{FORWARD}    {line}\n") if "*" not in line else ["line 3: "]
    assert inside and inside[0].startswith("line 3: "), inside


def test_numpy_is_named_whatever_it_says_that_it_needs(said):
    assert said("import numpy\n" + FORWARD + "    pass\n", requires=("numpy",)) == ["line 2: imports numpy"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("torch.add(a, b, out=out)", "line 5: torch.add"),
        ("t = torch\nt.add(a, b, out=out)", "line 6: torch.add"),
        ("torch.ops.aten.add.out(a, b, out=out)", "line 5: torch.ops.aten.add.out"),
        ("torch.nn.functional.gelu(a)", "line 5: torch.nn.functional.gelu"),
        ("torch.compile(lambda: a + b)()", "line 5: torch.compile"),
        ("torch.Tensor.add_(a, b)", "line 5: torch.Tensor.add_"),
        ("torch.set_num_threads(1)", "line 5: torch.set_num_threads"),
        ("with torch.cuda.stream(None): pass", "line 5: torch.cuda.stream"),
        ("helper(torch)", "line 5: hands torch itself on"),
        ('getattr(a, "ad" + "d_")(b)', "line 5: getattr()"),
        ('__import__("numpy")', "line 5: __import__()"),
        ('exec("import numpy")', "line 5: exec()"),
        ('eval("a + b")', "line 5: eval()"),
        ('f = compile("1", "", "eval")', "line 5: compile()"),
        ('g = globals\ng()["x"] = 1', "line 5: globals()"),
        ("def unused(exec): pass\nexec('1')", "line 6: exec()"),
        ("[exec for exec in ()]\nexec('1')", "line 6: exec()"),
        ("global exec\nexec = exec", "line 6: exec()"),
        ('vars(a)["x"] = 1', "line 5: vars()"),
        ('open("/proc/self/maps")', "line 5: open()"),
        ('__builtins__["open"]', "line 5: __builtins__()"),
        ("out.copy_(a)", "line 5: Tensor.copy_"),
        ("f = out.copy_\nf(a)", "line 5: Tensor.copy_"),
        ("a.matmul(b)", "line 5: Tensor.matmul"),
        ("a.view(-1).sum()", "line 5: Tensor.sum"),
        ("a.add(b)", "line 5: Tensor.add"),
        ("a.view(-1)[1:].add(b)", "line 5: Tensor.add"),
        ("type(a).add(a, b)", "line 5: Tensor.add"),
        ("a.numpy()", "line 5: Tensor.numpy"),
        ("a.to(torch.float32)", "line 5: Tensor.to"),
        ("a.tolist()", "line 5: Tensor.tolist"),
        ("out.view(-1)[:2] = a", "line 5: writes out.view(-1)[…] by torch"),
        ("rows = out.view(-1)\nrows[0] = 1", "line 6: writes rows[…] by torch"),
        ("rows = out.T\nrows += 1", "line 6: changes rows by torch"),
        ("rows = a.view(-1)\nrows.add(b)", "line 6: Tensor.add"),
        ("f = a.matmul", "line 5: Tensor.matmul"),
        ("class Lazy(torch.Tensor): pass", "line 5: a class of torch's: Lazy"),
        ("match a:\n    case torch.Tensor(add_=f): f(b)", "line 6: Tensor.add_"),
        ("import typing\ntyping.get_type_hints(a)", "line 6: typing.get_type_hints"),
        ("a.__add__(b)", "line 5: looks into __add__"),
        ("a.__dlpack__()", "line 5: looks into __dlpack__"),
        ("out.data = a", "line 5: Tensor.data"),
        ("out.__class__ = Lazy", "line 5: looks into __class__"),
        ("out.mine = a", "line 5: sets out.mine"),
        ("out[:] = a", "line 5: writes out[…] by torch"),
        ("out += a", "line 5: changes out by torch"),
        ("a.grad_fn", "line 5: Tensor.grad_fn"),
    ],
)
def test_a_computing_line_is_named(said, lines, told):
    assert told in said(body(lines))


def test_what_a_helper_does_is_named_wherever_it_is_called_from(said):
    text = "import torch\n\n\ndef work(x, y, z):\n    torch.add(x, y, out=z)\n\n\n" + FORWARD + "    work(a, b, out)\n"
    assert said(text) == ["line 6: torch.add"]
    assert said("class Fast:\n    def prepare(self, x):\n        return x.sum()\n" + FORWARD + "    pass\n")


@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("os", "os.fork()", "os.fork"),
        ("os", "os.sched_setscheduler(0, 1, None)", "os.sched_setscheduler"),
        ("os", "os.nice(-5)", "os.nice"),
        ("os", 'os.open("x", 0)', "os.open"),
        ("os", 'os.environ["TRITON_INTERPRET"] = "1"', "writes os.environ"),
        ("os", 'os.environ.setdefault("X", "1")', "writes os.environ"),
        ("sys", "sys._getframe(1)", "looks at frames or objects of others: _getframe"),
        ("sys", "sys.settrace(print)", "looks at frames or objects of others: settrace"),
        ("sys", "sys.modules", "sys.modules"),
        ("time", "time.sleep(1)", "time.sleep"),
        ("time", "time.perf_counter = print", "replaces time.perf_counter"),
        ("inspect", "inspect.currentframe()", "looks at frames or objects of others: currentframe"),
        ("pathlib", 'pathlib.Path("x")', "pathlib.Path"),
        ("types", "types.FunctionType", "types.FunctionType"),
        ("operator", "operator.add(a, b)", "operator.add"),
        ("operator", 'operator.methodcaller("add_")', "operator.methodcaller"),
        ("importlib", 'importlib.import_module("numpy")', "importlib.import_module"),
        ("importlib.util", "importlib.util.find_spec", "importlib.util.find_spec"),
        ("collections", "collections._sys.modules", "collections._sys.modules"),
        ("dataclasses", "dataclasses.sys.modules", "dataclasses.sys.modules"),
    ],
)
def test_a_use_of_an_ordinary_module_is_named(said, module, line, told):
    assert f"line 4: {told}" in said(f"import {module}\n{FORWARD}    {line}\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("from kernels.cpu import ctypes", "line 2: uses ctypes through kernels.cpu"),
        ("import kernels.cpu as k\nk.ctypes.CDLL", "line 3: uses ctypes"),
        ("import kernels.cpu\nkernels.cpu.ctypes.CDLL", "line 3: uses ctypes"),
        ("from kernels.cpu import torch as t\nt.add", "line 3: torch.add"),
        ("from kernels.cpu import FLAGS\nFLAGS.append('-lmkl')", "line 3: kernels.cpu.FLAGS"),
        ("import kernels.cpu as k\nk.build('x.cpp')", "line 3: kernels.cpu.build"),
        ("from kernels import cache_dir\ncache_dir()", "line 3: kernels.cache_dir"),
        ("from dataclasses import sys\nsys.modules", "line 3: dataclasses.sys.modules"),
        ("from kernels.cpu import Kernel\nKernel.__call__ = print", "line 3: replaces kernels.cpu.Kernel.__call__"),
        (
            'from kernels.cpu import Kernel\nKernel("x" + ".cpp", "add")',
            "line 3: a kernel's source is not written down as a text",
        ),
    ],
)
def test_launchers_are_no_way_to_what_they_use(said, text, told):
    assert told in said(f"{text}\n{FORWARD}    pass\n")


def test_a_module_beside_it_is_read_too(tmp_path):
    v = variant(tmp_path, "from outside.cpu.residual import helper\n" + FORWARD + "    helper.torch.add(a, b)\n")
    (v.path.parent / "helper.py").write_text("import ctypes\nimport torch\n\n\ndef work(x):\n    return x.sum()\n")
    assert foreign(v) == [
        "line 4: torch.add",
        "helper.py line 1: imports ctypes",
        "helper.py line 6: Tensor.sum",
    ]
    (v.path.parent / "helper.py").write_text("def broken(:\n")
    assert "helper.py line 1: cannot be read (SyntaxError)" in foreign(v)


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        ("    global fast\n    fast = torch.add", "torch.add"),
        ("    global fast\n    fast = lambda a, b, out: torch.add(a, b, out=out)", "torch.add"),
        ("    global fast\n    fast = torch.compile(forward)", "torch.compile"),
        ("    import threading", "imports threading"),
        ("    import numpy", "imports numpy"),
        ("    import os\n    os.nice(-5)", "os.nice"),
        ('    exec("1")', "exec()"),
        ('    import importlib\n    importlib.import_module("numpy")', "importlib.import_module"),
    ],
)
def test_prepare_may_tune_and_nothing_else(said, prepare, told):
    text = f"import torch\n\nfast = None\n\n\ndef prepare(shape, phase):\n{prepare}\n\n\n{FORWARD}    fast(a, b)\n"
    assert any(text.endswith(f": {told}") for text in said(text))


def test_what_forward_calls_is_no_tuning(said):
    text = "import torch\n\n\ndef prepare(shape, phase):\n    torch.ones(1)\n\n\n" + FORWARD + "    {}\n"
    assert said(text.format("pass")) == []
    assert said(text.format("prepare(a, b)")) == ["line 6: torch.ones"]
    assert said(
        "import torch\n\n\ndef prepare(shape, phase):\n    torch.ones(1)\n\n\nagain = prepare\n" + FORWARD + "    0\n"
    )


# --- Triton ---

TRITON = """
    import triton
    import triton.language as tl


    {decorator}
    def add(out, a, b, N, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(a + i, mask=i < N).to(tl.float32)
        tl.store(out + i, (x + x.sum(0) + tl.load(b + i, mask=i < N)).to(out.dtype.element_ty), mask=i < N)


    def forward(a, b, *, out):
        add[(triton.cdiv(out.numel(), 64),)](out, a, b, out.numel(), BLOCK=64)
        {line}
"""


def triton(said, line: str = "pass", decorator: str = "@triton.jit") -> list[str]:
    return said(TRITON.format(line=line, decorator=decorator), "triton")


def test_what_triton_compiles_is_its_own(said):
    assert triton(said) == []
    fake = TRITON.replace("{decorator}", "triton = Fake()\n\n\n    @triton.jit").format(line="pass")
    assert "line 13: Tensor.to" in said(fake, "triton")
    default = TRITON.replace("BLOCK: tl.constexpr", "BLOCK=tl.load(0).sum()").format(
        line="pass", decorator="@triton.jit"
    )
    assert said(default, "triton") == ["line 8: Tensor.sum"]
    assert triton(said, decorator='@triton.jit(do_not_specialize=["N"])') == []
    assert "line 10: Tensor.to" in triton(said, decorator="@tl.jit"), "which is no compiler"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('now = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], tl.int64, False, 1)', "%globaltimer"),
        ('now = tl.inline_asm_elementwise("mov.u32 $0, %clock;", "=r", [], tl.int32, False, 1)', "%clock"),
        ("now = tl.extra.cuda.globaltimer()", "globaltimer"),
    ],
)
def test_a_clock_that_triton_compiles_is_named(said, line, told):
    text = TRITON.replace("x = tl.load(", f"{line}\n        x = tl.load(", 1)
    assert f"line 10: a clock: {told}" in said(text.format(line="pass", decorator="@triton.jit"), "triton")


def test_a_host_of_triton_as_others_write_it_is_clean(said):
    text = """
        import importlib.metadata
        import operator

        import torch
        import triton
        import triton.language as tl
        from packaging.version import Version

        try:
            from triton.language.extra.libdevice import rsqrt
        except ModuleNotFoundError:
            from triton.language.extra.cuda.libdevice import rsqrt

        MOST = 65536
        NEW = operator.ge(Version(triton.__version__), Version(importlib.metadata.version("triton")))


        def settings(n):
            block = triton.next_power_of_2(n)
            if block > MOST:
                raise RuntimeError(f"{n} exceeds {MOST}")
            return block, 16 if torch.version.hip else 32


        @triton.autotune(configs=[triton.Config({}, num_warps=w) for w in (4, 8)], key=["C"])
        @triton.jit
        def kernel(X, Y, C, eps, BLOCK: tl.constexpr):
            c = tl.arange(0, BLOCK)
            x = tl.load(X + c, mask=c < C, other=0.0).to(tl.float32)
            tl.store(Y + c, x * rsqrt(tl.sum(x * x, 0) / C + eps), mask=c < C)


        def forward(a, b, *, out):
            rows = a.contiguous().view(-1, a.shape[-1])
            n, C = rows.shape
            block, warps = settings(C)
            assert a.is_cuda and a.stride(-1) == 1
            processors = torch.cuda.get_device_properties(a.device).multi_processor_count
            grid = lambda meta: (triton.cdiv(n, meta.get("ROWS", processors)),)
            with torch.cuda.device(a.device.index):
                kernel[grid](rows, out, C, torch.finfo(a.dtype).eps, BLOCK=block, num_warps=warps)
    """
    assert said(text, "triton") == []


@pytest.mark.parametrize(
    "line", ['getattr(tl, "make_tensor_descriptor", None)', "triton.language.random.rand", "triton.next_power_of_2(3)"]
)
def test_a_host_of_triton_may_ask_for_what_this_version_has(said, line):
    assert triton(said, line) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('getattr(tl, "torch")', "getattr()"),
        ('getattr(tl, "make" + "it")', "getattr()"),
        ("triton.testing.do_bench(add)", "triton.testing.do_bench"),
        ("triton.runtime.interpreter", "triton.runtime.interpreter"),
        ("triton.runtime.jit.torch.add(a, b)", "triton.runtime.jit.torch.add"),
        ("out.zero_()", "Tensor.zero_"),
        ("add.fn(out, a, b, 4, 64)", "calls in Python what Triton was to compile (fn)"),
    ],
)
def test_a_host_of_triton_launches_and_does_nothing_else(said, line, told):
    assert triton(said, line) == [f"line 16: {told}"]


def test_the_cpus_own_code_has_no_use_for_triton(said):
    assert said("import triton\n" + FORWARD + "    pass\n") == ["line 2: imports triton"]


# --- PyTorch's ---


@pytest.mark.parametrize(
    "lines",
    [
        "import numpy as np\nimport threading\nnp.ones(3)",
        "torch.add(a, b, out=out)\nout.copy_(a)\nout[:] = a",
        "torch.backends.cuda.matmul.allow_tf32 = True\ntorch._dynamo.config.recompile_limit = 9",
        'import os\nos.environ["TRITON_INTERPRET"] = "1"',
        "import time\ntime.sleep(0)\nself = a\nself.mine = 1",
    ],
)
def test_pytorchs_variants_may_use_what_they_like(said, lines):
    assert said(body(lines), "torch") == []


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("import sys\nsys._getframe(1).f_locals", "looks at frames or objects of others: _getframe"),
        ("from sys import _getframe as f", "looks at frames or objects of others: _getframe"),
        ('import sys\ngetattr(sys, "_getframe")', "looks at frames or objects of others: _getframe"),
        ("import inspect\ninspect.currentframe()", "looks at frames or objects of others: currentframe"),
        ("import gc\ngc.get_objects()", "looks at frames or objects of others: get_objects"),
        ("import threading\nthreading.setprofile(print)", "looks at frames or objects of others: setprofile"),
        ("try: raise ValueError\nexcept ValueError as e: e.__traceback__.tb_frame.f_back", "… tb_frame"),
        ("forward.__globals__", "looks at frames or objects of others: __globals__"),
        ("import inspect\ninspect.stack()", "looks at frames or objects of others: inspect.stack"),
        ("import gc\ngc.callbacks.append(print)", "looks at frames or objects of others: gc.callbacks.append"),
        (
            "import sys\nsys.monitoring.use_tool_id(1, 'x')",
            "looks at frames or objects of others: sys.monitoring.use_tool_id",
        ),
        ("import sys\nsys.addaudithook(print)", "looks at frames or objects of others: addaudithook"),
        ("import ctypes", "imports ctypes"),
        ("from ctypes import pythonapi", "imports ctypes"),
        ('import importlib\nimportlib.import_module("ctypes")', "imports ctypes"),
        ('__import__("ctypes").pythonapi', "imports ctypes"),
        ("from unittest import mock", "imports unittest.mock"),
        ("import time\ntime.perf_counter_ns = lambda: 0", "replaces time.perf_counter_ns"),
        ("import time as t\nt.process_time_ns = lambda: 0", "replaces time.process_time_ns"),
        ('import time\nsetattr(time, "perf_counter_ns", print)', "replaces time"),
        ('import time\nvars(time)["perf_counter_ns"] = print', "replaces time.__dict__"),
        ('import time\ntime.__dict__["perf_counter_ns"] = print', "replaces time.__dict__"),
        ('import sys\nsys.modules["time"] = None', "replaces sys.modules"),
        ("import os\nos.read = print", "replaces os.read"),
        ("torch.Tensor.add_ = print", "replaces torch.Tensor.add_"),
        ("from torch import Tensor\nTensor.equal = print", "replaces torch.Tensor.equal"),
        ("torch.cuda.Event = print", "replaces torch.cuda.Event"),
        ("for torch.cuda.synchronize in [print]: pass", "replaces torch.cuda.synchronize"),
        ("del torch.equal", "replaces torch.equal"),
        ("import bench.trial.checks as c\nc.judge = print", "replaces bench.trial.checks.judge"),
        ('eval("1")', "code made of a text: eval"),
        ('exec(compile("1", torch.__file__, "exec"))', "code made of a text: compile"),
        ("forward.__code__.replace(co_filename=torch.__file__)", "code made of a text: co_filename"),
        ("torch._C._construct_storage_from_data_pointer(1, 2, 3)", "… _construct_storage_from_data_pointer"),
        ("class At:\n    __array_interface__ = {}", "reaches memory by its address: __array_interface__"),
        ('setattr(a, "__array_struct__", 1)', "reaches memory by its address: __array_struct__"),
    ],
)
def test_no_variant_looks_at_its_caller_or_replaces_what_is_not_its_own(said, lines, told):
    found = said(body(lines), "torch")
    assert any(text.endswith(told.removeprefix("…")) for text in found), found


# --- C++ and CUDA ---


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ('system("ls");', "system()"),
        ('::system("ls");', "system()"),
        ('std::system("ls");', "system()"),
        ('void* at = dlopen("libmkl.so", 1);', "dlopen()"),
        ("auto f = &dlsym;", "dlsym()"),
        ("if (fork() == 0) return;", "fork()"),
        ("std::thread([] {}).detach();", "a thread's detach()"),
        ("pthread_detach(pthread_self());", "pthread_detach()"),
        ("auto later = std::async(work);", "std::async"),
        ("namespace s = std; auto later = s::async(work);", "std::async"),
        ("ptrace(PTRACE_TRACEME);", "ptrace()"),
        ("sched_setscheduler(0, SCHED_FIFO, &p);", "sched_setscheduler()"),
        ("setpriority(PRIO_PROCESS, 0, -20);", "setpriority()"),
        ("signal(SIGALRM, later);", "signal()"),
        ("setitimer(ITIMER_REAL, &when, nullptr);", "setitimer()"),
        ("timer_create(CLOCK_REALTIME, &e, &t);", "timer_create()"),
        ("clock_gettime(CLOCK_MONOTONIC, &now);", "clock_gettime()"),
        ("long long now = clock64();", "clock64()"),
        ("auto now = std::chrono::steady_clock::now();", "std::chrono"),
        ("auto now = __rdtsc();", "__rdtsc()"),
        ('asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));', "a clock: %globaltimer"),
        ("syscall(39);", "syscall()"),
        ('std::ifstream in("/proc/self/maps");', "ifstream()"),
        ('const char* where = "/proc/self/mem";', "a path: /proc/self/mem"),
        ("#include <torch/extension.h>", "includes torch/extension.h"),
        ("#include <dlfcn.h>", "includes dlfcn.h"),
        ("#include <Python.h>", "includes Python.h"),
        ("#include LIBRARY", "includes what a macro names"),
        ("cblas_sgemm(1, 2, 3);", "cblas_sgemm()"),
        ("__attribute__((constructor)) void early() {}", "what runs when it is loaded: constructor"),
        ('__attribute__((section(".text#"))) const char code[] = {0};', "what the linker is told: section"),
        ('extern "C" void* find(void*) __attribute__((weak));', "what the linker is told: weak"),
        ("#pragma weak find", "what the linker is told: weak"),
        ('asm volatile("syscall" : "+a"(x));', "assembly: syscall"),
        ('__asm__("nop\\n" ".byte 0x0f, 0x05");', "assembly: .byte"),
        ("mremap(at, size, size, 3, there);", "mremap()"),
    ],
)
def test_native_code_is_named(tmp_path, code, told):
    v = variant(tmp_path, CPP)
    v.path.with_suffix(".cpp").write_text(f"// one\n/* two\n*/\n{code}\n")
    assert f"made_up.cpp line 4: {told}" in foreign(v)


@pytest.mark.parametrize(
    "code",
    [
        "// system() and dlopen are not called\n/* nor fork() */",
        'printf("system() %s", "dlopen");',
        "char c = '\"'; int x = '/'; // signal(1)",
        'auto s = R"x(dlsym(")x";',
        "std::thread worker(work); worker.join();",
        "__device__ void signal(unsigned* flag) { atomicAdd(flag, 1); }\nvoid f() { signal(at); }",
        "barrier.signal(1); pool->system(2); timer.alarm(3);",
        "int64_t fork_at = 0; bool systems = true; operating_system(1);",
        '#include <immintrin.h>\n#include "common.hpp"\n#pragma omp parallel for',
        'asm volatile("cp.async.bulk.commit_group;" ::: "memory");',
        'asm volatile("{.reg .b32 a; mov.b32 a, %0;}" ::: "memory"); printf("a syscall .byte");',
    ],
)
def test_words_in_texts_and_names_of_its_own_are_none(code):
    assert list(native.foreign(code)) == []


def test_what_a_source_includes_is_read_too(tmp_path):
    v = variant(tmp_path, CPP)
    v.path.with_suffix(".cpp").write_text('#include "part.hpp"\n#include "common.hpp"\n')
    (v.path.parent / "part.hpp").write_text("\nint x = fork();\n")
    assert foreign(v) == ["part.hpp line 2: fork()"]
    strange = variant(tmp_path, CPP.replace("made_up.cpp", "part.hpp").replace("made_up", "x"))
    v.path.with_suffix(".cpp").unlink()
    assert foreign(strange) == ["part.hpp line 2: fork()"], "whatever its name ends in"


def test_a_source_is_read_in_its_own_encoding(said, tmp_path):
    v = variant(tmp_path, "")
    hidden = '"""Made up."""\n# coding: unicode_escape\n# \\u000aimport ctypes\n' + FORWARD + "    pass\n"
    v.path.write_text("# -*- coding: unicode_escape -*-\n" + hidden)
    assert foreign(v) == ["line 5: imports ctypes"]


def test_a_compiled_module_that_python_takes_unseen_is_named(tmp_path):
    v = variant(tmp_path, FORWARD + "    pass\n")
    py_compile.compile(str(v.path), doraise=True)
    assert foreign(v) == []
    py_compile.compile(str(v.path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert foreign(v) == ["line 1: has a compiled module beside it that Python does not check"]


@pytest.mark.parametrize(
    "text",
    [
        "/*" * 50_000,
        'R"(' * 50_000,
        "int x; //" + " " * 200_000 + "\n{",
        "system( " * 20_000,
        "void  system" + " " * 100_000,
    ],
    ids=["comments", "texts", "blanks", "calls", "a definition"],
)
def test_a_long_source_is_read_in_no_time(text):
    start = time.process_time()
    list(native.foreign(text))
    assert time.process_time() - start < 2


def test_what_is_too_long_or_too_deep_to_be_read_is_said(said):
    assert list(native.foreign("x" * (native.LONGEST + 1))) == [(1, "is too long to be read")]
    assert said(FORWARD + "    x = " + "-" * 20_000 + "1\n") == ["line 1: cannot be read (MemoryError)"]
    for depth in (800, 1_500, 5_000):  # whatever reads it first gives up
        told = said(FORWARD + "    x = " + "a." * depth + "b\n")
        assert told == [] if depth == 800 else told[0].startswith("line 1: "), told


@pytest.mark.parametrize("name", ["library_in_disguise", "numpy_in_disguise"])
def test_the_evil_ones_are_named(name):
    path = HOME / "tests" / "evil" / "cpu" / "residual" / f"{name}.py"
    assert foreign(Variant("residual", "cpu", name, path, "", frozenset({"forward"})))
