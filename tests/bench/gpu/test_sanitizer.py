"""compute-sanitizer, played by a script that reports in the real one's words and, where asked to, makes the calls on
the made-up GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import HOME, sanitize
from bench.cli import CannotGoOn
from bench.core import variants
from bench.core.case import Case
from bench.gpu import sanitizer
from bench.gpu.sanitizer import TOOLS, Calls, judge
from bench.machine.devices import open_device
from tests.fake_gpu import FakeGpu

DEVICE = "tests.fake_gpu:FakeGpu"
EVIL = HOME / "tests" / "evil"

# What the tools print, as their manual and users' reports show it (compute-sanitizer 2023 to 2025).
HEAD = "========= COMPUTE-SANITIZER\n"
THREAD = """\
========= Invalid __global__ write of size 4 bytes
=========     at void gelu<float>(T1 *, const T1 *, long long)+0x160 in /somewhere/kernels/cuda/gelu/overruns.cu:12
=========     by thread ({},0,0) in block (1,0,0)
=========     Access to 0x7f6510c0001c is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f6510c00000 of size 28 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernel [0x2e90bc] in libcuda.so.1
=========
"""
REPORTS = {
    "memcheck": HEAD + THREAD.format(31) + THREAD.format(32) + "========= ERROR SUMMARY: 2 errors\n",
    "racecheck": HEAD
    + """\
========= Error: Race reported between Write access at add(float *, int)+0x1b0 in /somewhere/missing_barrier.cu:26
=========     and Read access at add(float *, int)+0x350 in /somewhere/missing_barrier.cu:33 [496 hazards]
=========
========= Warning: Race reported between Read access at add(float *, int)+0x10 in /somewhere/missing_barrier.cu:9
=========     and Write access at add(float *, int)+0x20 in /somewhere/missing_barrier.cu:10 [4 hazards]
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
""",
    "initcheck": HEAD
    + """\
========= Uninitialized __global__ memory read of size 1 bytes
=========     at 0x150 in /somewhere/fused_moe.py:175:fused_moe_kernel
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7fc406200400
=========
========= ERROR SUMMARY: 1 error
""",
    "synccheck": HEAD
    + """\
========= Barrier error detected. Divergent thread(s) in block.
=========     at divergent(int *)+0xb0 in /somewhere/probe.cu:20
=========     by thread (0,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 1 error
""",
}
CLEAN = {tool: HEAD + "========= ERROR SUMMARY: 0 errors\n" for tool in TOOLS}
CLEAN["racecheck"] = HEAD + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"

SCRIPT = """\
#!{python}
import json, os, subprocess, sys, time
args = sys.argv[1:]
tool, log = (args[args.index(name) + 1] for name in ("--tool", "--log-file"))
target = args[args.index({python!r}):]
with open({journal!r}, "a") as journal:
    print(json.dumps([tool, target]), file=journal)
mode = os.environ.get("SANITIZER")
if mode == "unsupported":
    print("========= Error: Device not supported. Please refer to the documentation")
    sys.exit(1)
if mode == "hangs":
    subprocess.run(["sleep", "60"])
code, said = 0, "calls made: 3"
if "cuda.raises" in " ".join(target):
    said = "failed: gelu/cuda.raises/forward: no such tile\\n" + said
if mode == "runs":
    assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    done = subprocess.run(target, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    code, said = done.returncode, done.stdout
print(said)
found = "cuda.overruns" in " ".join(target) and tool == "memcheck"
open(log, "w").write(({reports!r} if found else {clean!r})[tool])
sys.exit(code)
"""

KERNEL = '''\
"""{story}"""
import torch
from tests.fake_gpu import kernel

def forward(x, *, out):
    with kernel("gelu"):
        {body}
'''
BODIES = {
    "honest": 'out.copy_(torch.nn.functional.gelu(x, approximate="tanh"))',
    "overruns": "out.zero_()",
    "raises": 'raise ValueError("no such tile")',
    "dies": 'raise RuntimeError("CUDA error: an illegal memory access was encountered")',
    "kills": "import os; os.abort()",
    "looks": "assert {t.untyped_storage().nbytes() - t.numel() * 4 for t in (x, out)} == {0}",
}


@pytest.fixture
def kernels(tmp_path) -> Path:
    folder = tmp_path / "kernels" / "cuda" / "gelu"
    folder.mkdir(parents=True)
    for stem, body in BODIES.items():
        (folder / f"{stem}.py").write_text(KERNEL.format(story=stem, body=body))
    return tmp_path / "kernels"


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """Puts the played tool on PATH; answers what it was asked to run, [tool, command] each."""
    file, script = tmp_path / "journal", tmp_path / "bin" / "compute-sanitizer"
    script.parent.mkdir()
    script.write_text(SCRIPT.format(python=sys.executable, journal=str(file), reports=REPORTS, clean=CLEAN))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    return lambda: [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def gpu(monkeypatch):
    made_up = FakeGpu()
    monkeypatch.setattr(sanitizer, "open_device", lambda name: made_up)
    yield made_up
    made_up.close()


def variant(kernels: Path, stem: str) -> variants.Variant:
    return variants.find(variants.discover((kernels,)), "gelu", f"cuda.{stem}")


def check(kernels: Path, stem: str, limit: float = 100) -> tuple[str, str]:
    return sanitizer.sanitize(variant(kernels, stem), "forward", "fp32", 7, limit, DEVICE)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.sanitize", *args]
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=200)


# --- what the tools said ---


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ("memcheck", ["2 errors", "Invalid __global__ write of size 4 bytes", "in overruns.cu:12", "(and 1 alike)"]),
        ("racecheck", ["1 error:", "Write access", "missing_barrier.cu:26 and Read access", "[496 hazards]"]),
        ("initcheck", ["1 error:", "Uninitialized __global__ memory read", "fused_moe.py:175:fused_moe_kernel"]),
        ("synccheck", ["1 error:", "Divergent thread(s) in block", "probe.cu:20", "by thread (0,0,0)"]),
    ],
)
def test_a_report_is_wrong_and_its_evidence_has_kernel_and_line(tool, says):
    status, evidence = judge(tool, REPORTS[tool], "calls made: 3", 0)
    assert status == "wrong" and evidence.startswith(f"{tool}: ")
    assert all(text in evidence for text in says), evidence
    assert "/somewhere" not in evidence and "Host Frame" not in evidence and "Warning" not in evidence


@pytest.mark.parametrize("tool", TOOLS)
def test_a_clean_report_counts_only_if_all_calls_were_made(tool):
    assert judge(tool, CLEAN[tool], "calls made: 3", 0) == ("ok", "")
    died = judge(tool, CLEAN[tool], "cuda.naive gelu forward ragged 1\nSegmentation fault", 139)
    assert died[0] == "error" and "exit code 139" in died[1] and "Segmentation fault" in died[1]
    assert judge(tool, CLEAN[tool], "", 0)[0] == "error", "it ended without making its calls"
    assert judge(tool, HEAD, "calls made: 3", 0)[0] == "error", "no summary is no verdict"


def test_different_errors_are_told_up_to_three_and_equal_ones_counted():
    report = "".join(THREAD.format(t).replace(":12", f":{line}") for line in (1, 2, 3, 4) for t in range(5))
    evidence = judge("memcheck", report + "========= ERROR SUMMARY: 20 errors\n", "", 1)[1]
    assert evidence.count("Invalid") == 3 and evidence.count("(and 4 alike)") == 3 and "1 more kinds" in evidence


# --- one variant ---


def test_a_variant_goes_through_all_tools_and_an_honest_one_is_ok(kernels, journal):
    assert check(kernels, "honest") == ("ok", "memcheck, racecheck, initcheck, synccheck: nothing found")
    assert [tool for tool, _ in journal()] == list(TOOLS)


def test_a_finding_is_wrong_with_its_evidence(kernels, journal):
    status, evidence = check(kernels, "overruns")
    assert status == "wrong" and "memcheck: 2 errors" in evidence and "overruns.cu:12" in evidence


def test_a_process_that_dies_is_an_error_that_names_the_last_call(kernels, journal, monkeypatch):
    monkeypatch.setenv("SANITIZER", "runs")
    status, evidence = sanitizer.findings(calls_of(kernels, "kills"), 100, ("memcheck",))["memcheck"]
    assert (
        status == "error" and "(exit code " in evidence and "gelu/cuda.kills/forward gelu forward ragged 0" in evidence
    )


def calls_of(kernels: Path, *stems: str) -> Calls:
    return Calls(tuple((variant(kernels, stem), "forward") for stem in stems), "fp32", 0, DEVICE)


def test_tensors_under_the_tool_are_allocations_of_their_own(kernels, gpu):
    assert sanitizer.make_calls(calls_of(kernels, "looks")) >= 3


def test_a_call_that_raises_is_told_and_the_next_goes_on(kernels, gpu, capsys):
    made = sanitizer.make_calls(calls_of(kernels, "raises", "honest"))
    said = capsys.readouterr().out
    assert made >= 3 and "failed: gelu/cuda.raises/forward: ValueError: no such tile" in said
    assert judge("memcheck", CLEAN["memcheck"], f"{said}calls made: {made}", 0)[0] == "error"


def test_after_a_lost_context_nothing_goes_on(kernels, gpu, capsys):
    with pytest.raises(CannotGoOn, match=r"cuda.dies/forward: .*illegal memory access"):
        sanitizer.make_calls(calls_of(kernels, "dies", "honest"))
    assert "cuda.honest" not in capsys.readouterr().out


def test_a_hanging_tool_is_stopped(kernels, journal, monkeypatch):
    monkeypatch.setenv("SANITIZER", "hangs")
    begin = time.monotonic()
    status, evidence = check(kernels, "honest", limit=2)
    assert status == "timeout" and "memcheck: stopped after" in evidence
    assert time.monotonic() - begin < 20


def test_a_device_that_the_tool_does_not_support_is_no_verdict(kernels, journal, monkeypatch):
    monkeypatch.setenv("SANITIZER", "unsupported")
    status, evidence = check(kernels, "honest")
    assert status == "skipped" and "does not support this device" in evidence


def test_without_the_tool_it_says_how_to_get_it(kernels, monkeypatch):
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    status, evidence = check(kernels, "honest")
    assert status == "skipped" and "CUDA toolkit" in evidence


def test_the_tool_is_found_in_a_toolkit_that_is_not_on_path(tmp_path, monkeypatch):
    tool = tmp_path / "cuda" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert sanitizer.find() != tool, "it cannot be executed"
    tool.chmod(0o755)
    assert sanitizer.find() == tool


def test_what_is_not_ours_or_not_on_a_gpu_is_skipped(kernels):
    torchs = variants.find(variants.discover(), "gelu", "torch.eager")
    assert sanitizer.sanitize(torchs, "forward", "fp32", 0, 9, DEVICE)[0] == "skipped"
    assert sanitizer.sanitize(variant(kernels, "honest"), "backward", "fp32", 0, 9, DEVICE) == (
        "skipped",
        "has no backward",
    )


# --- the command ---


def test_all_together_first_then_halves_until_it_is_clear_whose_it_is(kernels, journal, tmp_path):
    names = "cuda.honest,cuda.kills,cuda.overruns,cuda.raises"
    done = run(
        *("gelu", "--kernels", str(kernels), "--only", names, "--dtype", "fp32", "--device", DEVICE),
        *("--tools", "memcheck,synccheck", "--out", str(tmp_path / "run"), "--json"),
    )
    assert done.returncode == 2, done.stderr
    records = json.loads(done.stdout.splitlines()[-1])["records"]
    assert {(r["variant"], r["tool"]): r["status"] for r in records} == {
        **{(f"cuda.{stem}", tool): "ok" for stem in ("honest", "kills", "overruns") for tool in TOOLS[::3]},
        ("cuda.overruns", "memcheck"): "wrong",
        ("cuda.raises", "memcheck"): "error",
        ("cuda.raises", "synccheck"): "error",
    }
    wrong = next(r for r in records if r["status"] == "wrong")
    assert wrong["check"] == "sanitizer" and "overruns.cu:12" in wrong["evidence"] and "overruns.cu:12" in done.stdout
    assert wrong["reproduce"].startswith("compute-sanitizer --tool memcheck python -m bench.sanitize --calls gelu/")
    asked = [
        (tool, [c.split("/")[1].removeprefix("cuda.") for c in command[command.index("--calls") + 1].split(",")])
        for tool, command in journal()
    ]
    assert asked == [
        ("memcheck", ["honest", "kills", "overruns", "raises"]),
        ("memcheck", ["honest", "kills"]),
        ("memcheck", ["overruns", "raises"]),
        ("memcheck", ["overruns"]),
        ("memcheck", ["raises"]),
        ("synccheck", ["honest", "kills", "overruns", "raises"]),  # what merely raised something is known at once
    ]
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == 8


def test_without_time_to_find_out_whose_it_is_all_rows_say_so(kernels, monkeypatch):
    monkeypatch.setattr(sanitizer, "findings", lambda calls, limit, tools: {tools[0]: ("wrong", "memcheck: 1 error")})
    found = list(sanitizer.attributed(calls_of(kernels, "honest", "overruns"), "memcheck", time.monotonic() + 1))
    assert {status for _, (status, _) in found} == {"timeout"} and "1 error" in found[0][1][1]


def test_without_gpu_or_with_a_typo_it_is_one_line(ended):
    for args, code, says in [
        (["gelu"], 3, "no usable NVIDIA GPU"),
        (["gelu", "--only", "cuda.nave"], 64, "did you mean 'cuda.naive'"),
    ]:
        found, errors = ended(sanitize, *args)
        assert found == code and says in errors, errors


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("stem", "tool"), [("no_bound", "memcheck"), ("missing_barrier", "racecheck"), ("divergent_barrier", "synccheck")]
)
def test_the_real_tool_finds_real_mistakes(stem, tool):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or sanitizer.find() is None:
        pytest.skip("needs an NVIDIA GPU and compute-sanitizer")
    evil = variants.find(variants.discover((EVIL,)), "residual", f"cuda.{stem}")
    status, evidence = sanitizer.sanitize(evil, "forward", "fp32", 0, 240)
    assert status == "wrong" and f"{tool}: " in evidence and f"{stem}.cu:" in evidence
    honest = variants.find(variants.discover(), "residual", "cuda.naive")
    assert sanitizer.sanitize(honest, "forward", "fp32", 0, 240)[0] == "ok"


def test_nothing_is_tuned_under_a_tool():
    tuning = pytest.importorskip("kernels.triton.tuning", reason="Triton is not installed")
    seen = []
    module = SimpleNamespace(
        prepare=lambda shape, phase: seen.append((phase, tuning._untuned)), forward=lambda x, *, out: None
    )
    case = Case("gelu", "forward", {"N": 8, "dtype": "fp32"}, "small")
    sanitizer.call_bare(SimpleNamespace(load=lambda: module), case, open_device("cpu"))  # type: ignore[arg-type]
    assert seen == [("forward", True)] and not tuning._untuned
