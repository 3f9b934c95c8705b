"""Our own GPU kernels under compute-sanitizer: which calls, in whose process, and whose a finding is."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.core import arena as judging
from bench.core import variants
from bench.core.arena import Arena
from bench.core.case import Case, cases_of, draw
from bench.core.evidence import cause_of
from bench.core.variants import Variant
from bench.gpu import TOOLS
from bench.gpu.launches import untuned
from bench.machine.devices import Device, open_device
from bench.records.record import Record
from bench.records.run import Run
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console
from reference import contract

MISSING = (
    "no compute-sanitizer: it comes with the CUDA toolkit (package cuda-sanitizer); put it on PATH or set CUDA_HOME"
)
MADE = "calls made:"  # the last line of a process that went through all its calls
FAILED = "failed:"  # begins the line of a variant's pass whose call raised something
LEAST_SECONDS = 5.0  # with less than this a process under a tool does not even start
FIRST = 3  # different errors that evidence tells
FLAGS = (
    # Failing calls of the CUDA API are the caller's to handle, and PyTorch does: they are no finding.
    *("--report-api-errors", "no", "--check-exit-code", "no", "--target-processes", "application-only"),
    *("--print-limit", "100", "--launch-timeout", "120"),
)


Finding = tuple[str, str]  # (status, evidence)
Call = tuple[Variant, str]  # with "forward" or "backward"


@dataclass(frozen=True)
class Calls:
    """What one process under a tool runs: passes of variants, each on its small cases."""

    passes: tuple[Call, ...]
    dtype: str
    seed: int
    device: str

    def command(self) -> list[str]:
        """The command that makes the calls and nothing else."""
        roots = {str(v.path.parents[2]) for v, _ in self.passes if not v.path.is_relative_to(variants.KERNELS)}
        command = [sys.executable, "-m", "bench.sanitize", "--calls", ",".join(map(name_of, self.passes))]
        command += ["--dtype", self.dtype, "--seed", str(self.seed), "--device", self.device]
        return [*command, *(part for root in sorted(roots) for part in ("--kernels", root))]

    def only(self, passes: Iterable[Call]) -> "Calls":
        return replace(self, passes=tuple(passes))


def name_of(one: Call) -> str:
    variant, phase = one
    return f"{variant.layer}/{variant.name}/{phase}"


def passes_of(layer: str, kernels: list[str]) -> dict[str, Call]:
    """By name, all passes of the layers in a comma list, or of all; `kernels` are folders of more variants."""
    names = contract.layer_names()
    layers = names if layer == "all" else cli.choose_all(layer, names, "layer")
    here = [v for v in variants.discover(tuple(map(Path, kernels))) if v.layer in layers]
    return {name_of((v, phase)): (v, phase) for v in here for phase in contract.PHASES}


def named(passes: dict[str, Call], names: str) -> tuple[Call, ...]:
    return tuple(passes[name] for name in cli.choose_all(names, passes, "call"))


def chosen(passes: dict[str, Call], only: str | None, wanted: str, dtype: str, device: str) -> tuple[Call, ...]:
    """Those of the variants named, or of all, that have something to look at; `wanted`: a phase, or both."""
    layers = dict.fromkeys(v.layer for v, _ in passes.values())
    known = sorted({v.name for v, _ in passes.values()})
    names = cli.choose_all(only, known, f"variant of {', '.join(layers)}") if only else []
    check_that_it_can_run(device)
    return tuple(
        (v, phase)
        for v, phase in passes.values()
        if wanted in (phase, "both") and (not names or v.name in names) and not unsuitable(v, phase, dtype, device)
    )


def check_that_it_can_run(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CannotGoOn(f"--device {device}: no usable NVIDIA GPU (python -m bench.doctor says why)", cli.CANNOT_RUN)
    if find() is None:
        raise CannotGoOn(MISSING, cli.CANNOT_RUN)


def report(calls: Calls, tools: list[str], time_limit: float, out: Path | None, argv: list[str], as_json: bool) -> int:
    """Run the calls under the tools, within so many seconds, and write down and print what they found; an exit code."""
    run = Run.create("sanitize", out, argv)
    deadline = time.monotonic() + time_limit
    found: dict[str, dict[str, Finding]] = {name_of(one): {} for one in calls.passes}
    records = []
    for left, tool in zip(range(len(tools), 0, -1), tools, strict=True):
        now = time.monotonic()
        for one, finding in attributed(calls, tool, now + (deadline - now) / left):
            found[name_of(one)][tool] = finding
            records.append(run.append(_record(calls.only([one]), tool, finding)))
    run.write_csv()
    heads = [Col("call"), Col("verdict"), Col("evidence", prose=True, rank=1, least=48, below=True)]
    sheet = Sheet(f"compute-sanitizer, {calls.dtype}: {', '.join(tools)}", heads)
    for name, of_tools in found.items():
        status, evidence = worst(of_tools)
        sheet.add(name, status, evidence, label=name)
    sheet.print(console())
    print(f"results: {run.folder}")
    if as_json:
        cli.print_json({"run": str(run.folder), "records": records})
    statuses = {r["status"] for r in records}
    if "timeout" in statuses:
        cli.say(f"{sum(r['status'] == 'timeout' for r in records)} of {len(records)} had no time: --time-limit")
    return cli.WRONG if "wrong" in statuses else cli.TIMED_OUT if "timeout" in statuses else cli.OK


def attributed(calls: Calls, tool: str, deadline: float) -> Iterator[tuple[Call, Finding]]:
    """What each pass comes to under a tool. Where not all is well with several together, each half runs alone."""
    alone = len(calls.passes) == 1
    left = deadline - time.monotonic()
    status, evidence = findings(calls, left if alone else 0.7 * left, (tool,))[tool]
    if alone or status in ("ok", "skipped"):
        yield from ((one, (status, evidence)) for one in calls.passes)
    elif FAILED in evidence:  # these calls raised something, and the others went on
        for one in calls.passes:
            yield one, (status, evidence) if f"{FAILED} {name_of(one)}:" in evidence else ("ok", "")
    elif time.monotonic() > deadline - LEAST_SECONDS:
        yield from ((one, ("timeout", f"no time to find out whose this is: {evidence}")) for one in calls.passes)
    else:
        half = len(calls.passes) // 2
        middle = time.monotonic() + (deadline - time.monotonic()) / 2
        yield from attributed(calls.only(calls.passes[:half]), tool, middle)
        yield from attributed(calls.only(calls.passes[half:]), tool, deadline)


def _record(call: Calls, tool: str, finding: Finding) -> Record:
    ((variant, phase),) = call.passes
    return Record(
        case_id=f"{name_of((variant, phase))}-{call.dtype}-{tool}-{variant.source_hash()}",
        layer=variant.layer,
        variant=variant.name,
        phase=phase,
        dtype=call.dtype,
        device=call.device,
        status=finding[0],
        check="sanitizer",
        evidence=finding[1],
        tool=tool,
        seed=call.seed,
        reproduce=shlex.join(["compute-sanitizer", "--tool", tool, "python", *call.command()[1:]]),
    )


# --- one variant ---


def sanitize(variant: Variant, phase: str, dtype: str, seed: int, time_limit: float, device: str = "cuda") -> Finding:
    """Run a variant's small cases under all tools. Answers (status, evidence):

    ok       no tool reports anything
    wrong    a tool reports errors: the first ones, with kernel and line
    skipped  no compute-sanitizer, or nothing of our own to look at
    timeout  the tools took longer than `time_limit` seconds in all
    error    a tool or the calls under it failed
    """
    if reason := unsuitable(variant, phase, dtype, device):
        return "skipped", reason
    return worst(findings(Calls(((variant, phase),), dtype, seed, device), time_limit))


def unsuitable(variant: Variant, phase: str, dtype: str, device: str) -> str | None:
    """Why there is nothing to look at, or None."""
    if not variant.gpu_code:
        return "compute-sanitizer is for kernels of our own on a GPU"
    return variants.unavailable(variant, device, dtype) if variant.has(phase) else f"has no {phase}"


def findings(calls: Calls, time_limit: float, tools: Iterable[str] = TOOLS) -> dict[str, Finding]:
    """What each tool says of the calls. The time is shared out, and what one leaves is for those that follow."""
    sanitizer, tools = find(), list(tools)
    if sanitizer is None:
        return {tool: ("skipped", MISSING) for tool in tools}
    deadline = time.monotonic() + time_limit
    found = {}
    for left, tool in zip(range(len(tools), 0, -1), tools, strict=True):
        found[tool] = under(sanitizer, tool, calls.command(), (deadline - time.monotonic()) / left)
    return found


def worst(found: dict[str, Finding]) -> Finding:
    """Of several tools: everything that those with the worst status say."""
    for status in ("wrong", "error", "timeout", "skipped"):
        if said := [evidence for s, evidence in found.values() if s == status]:
            return status, "; ".join(dict.fromkeys(said))
    return "ok", f"{', '.join(found)}: nothing found"


def find() -> Path | None:
    """compute-sanitizer on PATH, in a CUDA toolkit, or in an NVIDIA wheel."""
    if on_path := shutil.which("compute-sanitizer"):
        return Path(on_path)
    toolkits = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    toolkits += [Path("/usr/local/cuda"), *sorted((Path(sysconfig.get_paths()["purelib"]) / "nvidia").glob("*"))]
    places = [folder / sub / "compute-sanitizer" for folder in toolkits for sub in ("bin", "compute-sanitizer")]
    return next((p for p in places if os.access(p, os.X_OK) and p.is_file()), None)


def under(sanitizer: Path, tool: str, command: list[str], time_limit: float) -> Finding:
    """One run of `command` under one tool."""
    if time_limit <= 0:
        return "timeout", f"{tool}: no time left"
    with tempfile.TemporaryDirectory(prefix="layerbench-") as folder:
        log, output = Path(folder) / "log", Path(folder) / "output"
        line = [str(sanitizer), "--tool", tool, *FLAGS, "--log-file", str(log), *command]
        # PyTorch would cut several tensors from one allocation, whose end then hides theirs.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            with output.open("w") as out:
                process = subprocess.Popen(
                    line, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=HOME, start_new_session=True
                )
            code = _wait(process, time_limit)
        except OSError as error:
            return "error", f"{tool}: {sanitizer.name} does not start: {error.strerror}"
        said = output.read_text(errors="replace")
        report = log.read_text(errors="replace") if log.exists() else said
    if code is None:
        return "timeout", f"{tool}: stopped after {time_limit:.0f} s"
    return judge(tool, report, said, code)


def _wait(process: subprocess.Popen[bytes], time_limit: float) -> int | None:
    """The exit code; None where the time was over, and the process and all it started were killed."""
    try:
        return process.wait(time_limit)
    except BaseException as stop:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(stop, subprocess.TimeoutExpired):
            return None
        raise


# --- what a tool said ---

SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) errors?")
RACES = re.compile(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, \d+ warnings?\)")
# A report begins with a line that is not indented; what belongs to it follows, indented.
TITLE = re.compile(
    r"^========= (?=\S)(?!COMPUTE-SANITIZER|Warning|Program hit|Process ID|Target application)(?!.*SUMMARY)"
)
DETAIL = re.compile(r"^=========\s{2,}(at |and |Address|Access|by thread)")


def judge(tool: str, report: str, said: str, code: int) -> Finding:
    """What a run under a tool came to, from the tool's report, the program's own output and the exit code.

    A summary of no errors counts only for a program that made all its calls: one that dies before has none either.
    """
    summary = (RACES if tool == "racecheck" else SUMMARY).findall(report)
    if summary and int(summary[-1]):
        return "wrong", f"{tool}: {summary[-1]} error{'s' if summary[-1] != '1' else ''}: {first_errors(report)}"
    if "Device not supported" in report + said:
        return "skipped", f"{tool}: compute-sanitizer does not support this device (a virtual one?)"
    if failed := [line for line in said.splitlines() if line.startswith(FAILED)]:
        return "error", f"{tool}: {'; '.join(failed)}"
    if not summary:
        return "error", f"{tool}: no summary (exit code {code}): {_last_line(report) or _last_line(said)}"
    if code or MADE not in said:
        return "error", f"{tool}: the process ended early (exit code {code}): {_last_line(said)}"
    return "ok", ""


def first_errors(report: str) -> str:
    """The first different errors, each on one line with kernel and place, and how often."""
    blocks: list[list[str]] = []
    ours = False  # whether the lines that follow belong to an error
    for line in report.splitlines():
        if re.match(r"^========= (?=\S)", line):
            ours = bool(TITLE.match(line))
            blocks += [[line]] if ours else []
        elif ours and DETAIL.match(line):
            blocks[-1].append(line)
    errors: Counter[str] = Counter()
    example: dict[str, str] = {}
    for block in blocks:
        parts = [_plain(line) for line in block]
        # The same instruction reports once for each thread: thread and address do not tell errors apart.
        same = " ".join(p for p in parts if not p.startswith(("by thread", "Address", "Access")))
        errors[same] += 1
        example.setdefault(same, " ".join(parts))
    shown = [example[e] + (f" (and {n - 1} alike)" if n > 1 else "") for e, n in list(errors.items())[:FIRST]]
    more = [f"{len(errors) - FIRST} more kinds"] if len(errors) > FIRST else []
    return "; ".join([*shown, *more])


def _plain(line: str) -> str:
    """A line of a report without its prefix, without folders, and without a kernel's template and parameters."""
    text = line.removeprefix("=========").strip()
    text = re.sub(r"(?:/[^\s/:]+)+/", "", text)
    return re.sub(r"\([^()]*[*&][^()]*\)", "()", text)


def _last_line(text: str) -> str:
    lines = [line.removeprefix("=========").strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")


# --- the process under the tool ---


def make_calls(calls: Calls) -> int:
    """Each case once; how many calls that were. A pass that raises something is told, and the next one goes on."""
    device = open_device(calls.device)
    made = 0
    for one in calls.passes:
        try:
            for case in _cases(*one, calls):
                print(name_of(one), case, flush=True)  # the last one printed is the one that ended the process
                call_bare(one[0], case, device)
                made += 1
        except Exception as error:
            what = f"{name_of(one)}: {cause_of(error)}"
            if re.search("CUDA.error", what, re.IGNORECASE):
                raise CannotGoOn(f"after this nothing runs: {what}") from error
            print(FAILED, what, flush=True)
    return made


def _cases(variant: Variant, phase: str, calls: Calls) -> list[Case]:
    accumulates = contract.pass_of(contract.load(variant.layer), phase).accumulates
    # The second seed adds to parameter gradients where the first overwrites them.
    seeds = [calls.seed, calls.seed + 1] if accumulates else [calls.seed]
    return cases_of(variant.layer, phase, calls.dtype, seeds, thorough=False)


def call_bare(variant: Variant, case: Case, device: Device) -> None:
    """One call on tensors without guards and poison, on any device."""

    class Bare(Arena):
        """Each tensor is an allocation of its own, as large as it must be, and holds nothing."""

        def _fence(self, name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(sizes, dtype=dtype, device=self.device)

        def reset(self, seed: int | None = None) -> None:
            for name, values in self.initial.items():
                self._put(name, self.outputs[name], values)

    module = variant.load()
    if hasattr(module, "prepare"):
        with untuned():  # under a tool no time is one, and each measurement is many calls
            module.prepare(case.shape, case.phase)
    arena = Bare(case, device.place, judging.workspace_of(module, case))
    arena.load(draw(case))
    arena.reset()
    arena.call(getattr(module, case.phase))
    device.synchronize()
