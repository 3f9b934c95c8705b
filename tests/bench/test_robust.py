"""Every command under bad arguments, damaged runs, places that cannot be written, and Ctrl-C: one line, and a code."""

import ast
import errno
import fcntl
import importlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import HOME, cli
from bench.cli import FAILED, INTERRUPTED, OK, USAGE, filled
from bench.machine import facts
from bench.records.read import latest, read_records, runs_in
from bench.records.run import Run
from bench.records.schema import MEASURED
from tests.compare_runs import ENVIRONMENT, Noise, failure, layer_records, step_records, write_run

EVIL = HOME / "tests" / "evil"
real_description = facts.describe
NOT_COMPARABLE = 3  # what bench.compare says of a run that it cannot read


class Ended:
    """How a command ended: its exit code and what it said."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    def refuses(self, says: str, code: int) -> None:
        """One line, warnings of single records aside, that names the fault."""
        errors = [line for line in self.err.splitlines() if not line.startswith("warning: ")]
        assert self.code == code and len(errors) == 1, (self.code, self.err)
        assert errors[0].startswith("error: ") and says in errors[0], errors[0]


@pytest.fixture
def command(capsys, monkeypatch, tmp_path) -> Callable[..., Ended]:
    """Runs `python -m bench.NAME ARGUMENTS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(facts, "describe", lambda: ENVIRONMENT)

    def run(name: str, *arguments: Any) -> Ended:
        argv = [str(a) for a in arguments]
        monkeypatch.setattr(sys, "argv", [name, *argv])
        module = importlib.import_module(f"bench.{name}")
        try:
            code = cli._run(lambda: module.main(argv))
        except SystemExit as stop:  # argparse's
            assert isinstance(stop.code, int)
            code = stop.code
        told = capsys.readouterr()
        return Ended(code, told.out, told.err)

    return run


# --- help ---


def test_help_answers_at_once_and_names_the_exit_codes():
    """Of every command, all in one process: what one of them imports, none may."""
    names = [f.stem for f in sorted((HOME / "bench").glob("*.py")) if "cli.run(" in f.read_text()]
    assert len(names) > 10
    code = f"""
import importlib, sys
for name in {names}:
    sys.argv = [name, "--help"]
    try:
        importlib.import_module("bench." + name).main()
    except SystemExit as stop:
        assert not stop.code
    heavy = {{"torch", "numpy", "pandas", "rich", "scipy", "altair", "jinja2", "tiktoken", "tokenizers"}}
    assert heavy.isdisjoint(sys.modules), (name, heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exit codes") == len(names)


def test_every_option_is_explained():
    for file in sorted((HOME / "bench").glob("*.py")):
        module = importlib.import_module(f"bench.{file.stem}")
        if hasattr(module, "parser"):
            mute = [a.dest for a in module.parser()._actions if not a.help]
            assert not mute, (file.stem, mute)


def test_help_fits_a_terminal_of_80_columns(monkeypatch):
    """But for commands, which are copied whole; and it is as it was written where there is room."""
    for file in sorted((HOME / "bench").glob("*.py")):
        module = importlib.import_module(f"bench.{file.stem}")
        if hasattr(module, "parser"):
            monkeypatch.setenv("COLUMNS", "80")
            narrow = module.parser().format_help()
            wide = [line for line in narrow.splitlines() if len(line) > 80 and not cli.COMMAND.match(line)]
            assert not wide, (file.stem, wide)
            monkeypatch.setenv("COLUMNS", "200")
            written = module.__doc__ or ""
            assert written.strip() in module.parser().format_help()
            assert written.split() == " ".join(filled(written, 78)).split(), file.stem


def test_text_is_filled_by_what_it_is():
    text = """Prose of two lines, the
second one. python -m is a word here.

python -m bench.layer gelu --all      what it does
python -m bench.layer a-command-that-is-longer-than-the-terminal-is
    kept as it is
NAME  what it is, in a column
      of its own
"""
    assert filled(text, 30) == [
        *("Prose of two lines, the second", "one. python -m is a word here.", ""),
        *("python -m bench.layer gelu --all", "        what it does"),
        "python -m bench.layer a-command-that-is-longer-than-the-terminal-is",
        "    kept as it is",
        *("NAME  what it is, in a column", "      of its own"),
    ]


# --- arguments ---

ARGUMENTS = [
    # of what no program can make sense
    ("layer", "residual --seconds 0", "'0' is not a number above 0"),
    ("layer", "residual --seconds -1", "'-1' is not a number above 0"),
    ("layer", "residual --seconds nan", "'nan' is not a number above 0"),
    ("layer", "residual --seconds inf", "'inf' is not a number above 0"),
    ("layer", "residual --seconds x", "'x' is not a number above 0"),
    ("layer", "residual --time-limit 0", "is not a number above 0"),
    ("layer", "residual --time-limit nan", "is not a number above 0"),
    ("layer", "residual --processes 0", "'0' is not a whole number above 0"),
    ("layer", "residual --processes 1.5", "is not a whole number above 0"),
    ("layer", "residual --threads -1", "is not a whole number from 1 to"),
    ("layer", "residual --threads 100000", "the cores of this machine"),
    ("layer", "residual --seed -1", "is not a whole number from 0 to 2147483647"),
    ("layer", "residual --seed 99999999999999999999", "is not a whole number from 0"),
    ("layer", "residual --cache hot", "unknown cache state 'hot'"),
    ("layer", "residual -a B=abc", "'abc' is not a positive whole number"),
    ("layer", "residual -a B=", "is not NAME=VALUE"),
    ("layer", "residual -a B=0", "'0' is not a positive whole number"),
    ("layer", "residual -a B=²", "'²' is not a positive whole number"),
    ("layer", "residual -a T=1,,2", "'' is not a positive whole number"),
    ("layer", "residual -a =3", "has no axis ''"),
    ("layer", "residual --device tpu", "unknown device 'tpu'"),
    ("layer", "residual --pass sideways", "invalid choice: 'sideways'"),
    ("layer", "residual --only torch.eager,", "unknown variant"),
    ("layer", "residual --watch --only torch.eagr", "did you mean 'torch.eager'"),
    ("layer", "residual --watch --only torch.eager --shape nope", "unknown model 'nope'"),
    ("layer", "", "required: layer"),
    ("layer", "gelu --all --only cpu.simd", "--all and --only: one of them"),
    ("e2e", "gpt2-tiny --batch abc", "is not a whole number above 0"),
    ("e2e", "gpt2-tiny --steps -1", "is not a whole number above 0"),
    ("e2e", "gpt2-tiny --accumulation 0", "is not a whole number above 0"),
    ("e2e", "gpt2-tiny --seq 99999", "128 positions"),
    ("e2e", "gpt2-tiny --lr nan", "is not a number above 0"),
    ("e2e", "gpt2-tiny --lr 0", "is not a number above 0"),
    ("e2e", "gpt2-tiny --time-limit -5", "is not a number above 0"),
    ("e2e", "gpt2-tiny --seed -1", "is not a whole number from 0"),
    ("e2e", "gpt2-tiny --threads 0", "is not a whole number from 1"),
    ("e2e", "gpt2-tiny --baseline none,eager", "unknown baseline 'none'"),
    ("e2e", "gpt2-tiny --recompute matmul", "(known: gelu, layernorm)"),
    ("e2e", "gpt2-tiny --device tpu", "unknown device 'tpu'"),
    ("e2e", "gpt2-tiny --kernels fastest,", "has an empty entry"),
    ("suite", "--out s --minutes 0", "is not a number above 0"),
    ("suite", "--out s --minutes nan", "is not a number above 0"),
    ("suite", "--out s --layers gelu,", "unknown layer ''"),
    ("suite", "--out s --model gpt2-125m", "did you mean 'gpt2-124m'"),
    ("suite", "", "--out DIR says where"),
    ("doctor", "extra", "unrecognized arguments: extra"),
    ("doctor", "--refesh", "did you mean '--refresh'"),
    ("static", "gelu --jobs -1", "is not a whole number above 0"),
    ("static", "gelu --arch sm_90", "did you mean 'sm_90a'"),
    ("static", "gelu --dtype x", "unknown dtype 'x'"),
    ("static", "gelo", "did you mean 'gelu'"),
    ("report", "", "required: RUN"),
    ("report", "x --pgn y", "did you mean '--png'"),
    ("compare", "one", "two folders, BEFORE and AFTER"),
    ("compare", "one two --fail-no any", "did you mean '--fail-on'"),
    ("history", "gelu --cache x", "invalid choice: 'x'"),
    ("export", "run", "required: --format, --out"),
    ("export", "run --format nvbenhc --out x", "did you mean 'nvbench'"),
    ("explain", "gelu.cpu.smd", "did you mean 'cpu.simd'"),
    ("explain", "gelu --dtype fp64", "did you mean 'fp16'"),
    ("explain", "gelu --model gpt3", "unknown model 'gpt3'"),
    ("new", "gelu mine --backend tritn", "did you mean 'triton'"),
    ("new", "gelu ../mine --backend cpu", "is no name for a file here"),
    ("readme_tables", "--chek", "did you mean '--check'"),
    ("sanitize", "gelo", "did you mean 'gelu'"),
    ("sanitize", "gelu --tools memchek", "did you mean 'memcheck'"),
    ("sanitize", "gelu --time-limit 0", "is not a number above 0"),
    ("data", "--val-fraction 2", "is not a fraction"),
    ("data", "--vocub x", "did you mean '--vocab'"),
    # … what another command calls otherwise, and what goes with something else alone
    ("layer", "gelu --dtype bf16", "here it is -a dtype=bf16"),
    ("generate", "llama2-tiny --tokens 1,2", "here it is --steps N, and a prompt of ids --prompt-ids"),
    ("sample", "run --steps 3", "here it is --tokens N"),
    ("layer", "list --only cpu.simd", "list shows every variant"),
    ("layer", "gelu relu", "unrecognized arguments: relu (python"),
    ("layer", "gelu --shape gpt2-124m/qkv --only torch.eager", "gelu has one shape in gpt2-124m, without a name"),
    ("roofline", "gelu", "go with --count"),
    ("roofline", "--only cuda.mma --check", "go with --count"),
    ("scaling", "run --bandwidth 25 --out link.json", "--out goes with --measure-link"),
    ("scaling", "run", "which link?"),
    ("train", "--out none --resume", "no checkpoint to go on from"),
]


@pytest.mark.parametrize(("name", "arguments", "says"), ARGUMENTS, ids=lambda x: x)
def test_bad_arguments(command, tmp_path, name, arguments, says):
    command(name, *arguments.split()).refuses(says, USAGE)
    assert not list(tmp_path.iterdir()), "nothing is written for a command that makes no sense"


# A variable of a shell that is not set.
EMPTY = [
    *(("layer", ("residual", option)) for option in ("--out", "--resume", "--only", "--shape", "--profile")),
    *(("e2e", ("gpt2-tiny", option)) for option in ("--out", "--data", "--kernels", "--swap", "--baseline")),
    *(("suite", ("--out", "s", option)) for option in ("--device", "--layers")),
    *((name, ()) for name in ("layer", "e2e", "static", "report", "history", "explain", "sanitize", "data")),
    *(("static", ("gelu", option)) for option in ("--only", "--arch", "--dtype", "--out")),
    *(("history", ("gelu", option)) for option in ("--results", "--variant", "--device", "--png", "--html")),
    ("compare", ("run",)),
    ("export", ("run", "--format", "csv", "--out")),
    ("new", ("gelu", "mine", "--backend", "cpu", "--into")),
    ("readme_tables", ()),
]


@pytest.mark.parametrize(("name", "arguments"), EMPTY, ids=str)
def test_an_empty_argument_is_not_the_folder_one_is_in_and_not_everything(command, tmp_path, name, arguments):
    command(name, *arguments, "").refuses("is empty", USAGE)
    assert not list(tmp_path.iterdir())


# --- places ---

PLACES = [
    ("layer", ("residual", "--out", "{}")),
    ("layer", ("residual", "--profile", "{}")),
    ("e2e", ("gpt2-tiny", "--kernels", "torch.eager", "--data", "data.bin", "--out", "{}")),
    ("e2e", ("gpt2-tiny", "--kernels", "torch.eager", "--data", "data.bin", "--profile", "{}")),
    ("suite", ("--out", "{}")),
    ("static", ("gelu", "--out", "{}")),
    ("new", ("gelu", "mine", "--backend", "cpu", "--into", "{}")),
    ("report", ("run", "--out", "{}/page.html")),
    ("report", ("run", "--png", "{}")),
    ("history", ("gelu", "--results", "run", "--html", "{}/page.html")),
    ("history", ("gelu", "--results", "run", "--png", "{}/picture.png")),
    *(("export", ("run", "--format", f, "--out", "{}/x")) for f in ("bmf", "csv", "nvbench")),
]


@pytest.fixture
def run(tmp_path) -> Path:
    """A good run, and tokens to train with."""
    from bench.text import shards

    shards.write_tokens(tmp_path / "data.bin", (np.arange(5000) % 97).astype(np.uint16))
    return write_run(tmp_path / "run", layer_records(np.random.default_rng(0), Noise(), cache="cold"))


def test_no_command_writes_over_a_runs_own_files(run, tmp_path, capsys, monkeypatch):
    """Whatever option says where it writes, and by whatever name the file is reached."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(run / "env.json")
    tried = set()
    for file in sorted((HOME / "bench").glob("*.py")):
        if "def parser" not in file.read_text():
            continue
        module = importlib.import_module(f"bench.{file.stem}")
        actions = module.parser()._actions
        for option in (a for a in actions if a.dest in cli.OUTPUTS and a.option_strings):
            needed = [a for a in actions if a.required and a is not option]
            rest = [word for a in needed for word in (*a.option_strings[:1], next(iter(a.choices or ["x"])))]
            for place in ("run/records.jsonl", "run/../run/env.json", "link"):
                with pytest.raises(SystemExit) as ended:
                    module.parser().parse_args([*rest, f"--{option.dest}", place])
                said = capsys.readouterr().err
                assert ended.value.code == USAGE and f"--{option.dest} {place}: a run's own file" in said, said
            tried.add((file.stem, option.dest))
    assert {("layer", "out"), ("report", "png"), ("export", "out"), ("compare", "html"), ("history", "html")} <= tried
    assert len(tried) > 18


@pytest.mark.parametrize(("name", "arguments"), PLACES, ids=str)
@pytest.mark.parametrize("place", ("file", "/proc/nowhere"))  # even root cannot make a folder in /proc
def test_a_place_that_cannot_be_written(command, run, tmp_path, name, arguments, place):
    (tmp_path / "file").write_text("mine")
    command(name, *(a.format(place) for a in arguments)).refuses("cannot write", FAILED)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "runs").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("layer", ("residual",)),
        ("e2e", ("gpt2-tiny", "--kernels", "torch.eager", "--data", "data.bin")),
        ("static", ("gelu",)),
    ],
)
def test_a_cache_that_cannot_be_written(command, run, monkeypatch, tmp_path, name, arguments):
    monkeypatch.setenv("LAYERBENCH_CACHE", "/proc/nowhere")
    command(name, *arguments).refuses("set LAYERBENCH_CACHE", FAILED)
    assert not (tmp_path / "runs").exists()


def test_a_report_needs_no_cache(command, run, monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERBENCH_CACHE", "/proc/nowhere")
    assert command("report", "run", "--out", "page.html").code == 0 and (tmp_path / "page.html").exists()


def test_what_else_needs_the_cache_names_the_way_out(command, run, monkeypatch, tmp_path):
    (tmp_path / "text").write_text("some text " * 100)
    monkeypatch.setenv("LAYERBENCH_CACHE", "/proc/nowhere")
    ended = command("data", "text")
    assert ended.code == FAILED and ended.err.splitlines()[-1].startswith("error: /proc/nowhere: ")
    assert "set LAYERBENCH_CACHE" in ended.err and "Traceback" not in ended.err


def test_the_doctor_goes_on_without_a_cache_and_says_so(command, monkeypatch):
    from bench.machine import ceilings, examine

    monkeypatch.setenv("LAYERBENCH_CACHE", "/proc/nowhere")
    monkeypatch.setattr(examine, "PROBE_SECONDS", 0.01)
    known = ceilings.Ceilings("cpu", {}, {}, {}, {}, {}, 2, 0, None, "2026-11-21T00:00:00+00:00", 1.0)
    monkeypatch.setattr(ceilings, "ceilings", lambda *_: known)
    monkeypatch.setattr(facts, "describe", real_description)
    ended = command("doctor")
    assert ended.code == OK, ended.err
    assert "NOT WRITABLE" in ended.out and "set LAYERBENCH_CACHE to another folder" in ended.out


def test_without_a_home_folder(command, run, monkeypatch):
    def nobody(*_):
        raise KeyError

    for name in ("HOME", "LAYERBENCH_CACHE", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    command("layer", "residual").refuses("set LAYERBENCH_CACHE", FAILED)
    assert command("export", run, "--format", "bmf", "--out", "x.json").code == OK
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # means the same as none, not this folder
    command("layer", "residual").refuses("set LAYERBENCH_CACHE", FAILED)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("export", ("run", "--format", "bmf", "--out", "x.json")),
        ("export", ("run", "--format", "csv", "--out", "x.csv")),
        ("history", ("gelu", "--results", "run", "--html", "x.html")),
        ("report", ("run", "--out", "x.html")),
    ],
)
@pytest.mark.parametrize("fault", (errno.ENOSPC, errno.EROFS))
def test_a_disk_that_is_full_or_read_only(command, run, monkeypatch, tmp_path, name, arguments, fault):
    def full(*_):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "fsync", full)
    ended = command(name, *arguments)
    ended.refuses("make room" if fault == errno.ENOSPC else "Read-only file system", FAILED)
    assert "--resume" not in ended.err
    assert {p.name for p in tmp_path.iterdir()} <= {"run", "data.bin", "x.json-bin"}, "no half file stays"


def test_what_is_no_file_is_written_to_and_not_replaced(command, run, tmp_path):
    """As root a rename would put a file in the place of /dev/null."""
    (tmp_path / "null").symlink_to("/dev/null")
    assert command("export", run, "--format", "bmf", "--out", "null").code == OK
    assert (tmp_path / "null").is_symlink()


@pytest.mark.parametrize(("place", "says"), [("nowhere/README.md", "no such file"), (".", "a folder, no file")])
def test_a_document_that_cannot_be_read(command, place, says):
    command("readme_tables", place).refuses(says, FAILED)


# What takes a path: words, what it takes, and the exit code.
PATHS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "report": (("{}",), "folder", FAILED),
    "compare": (("{}", "{}"), "folder", NOT_COMPARABLE),
    "history": (("gelu", "--results", "{}"), "folder", FAILED),
    "layer": (("gelu", "--kernels", "{}"), "folder", FAILED),
    "import": (("{}", "--layer", "gelu"), "file", FAILED),
    "generate": (("{}",), "file or folder", USAGE),
    "data": (("{}",), "file or folder", FAILED),
    "sample": (("{}",), "file or folder", FAILED),
    "scaling": (("{}", "--bandwidth", "1"), "folder", FAILED),
    "readme_tables": (("{}",), "file", FAILED),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_not_there_is_told_in_the_same_words(command, name, tmp_path):
    words, what, code = PATHS[name]
    nowhere, link = tmp_path / "no.where", tmp_path / "li.nk"
    link.symlink_to(nowhere)
    for path, says in ((nowhere, f"no such {what}"), (link, f"no such {what} (a link that leads nowhere)")):
        command(name, *(word.format(path) for word in words)).refuses(f"error: {path}: {says}", code)
    if what == "file or folder":
        return
    other = tmp_path / "other.kind"
    other.mkdir() if what == "file" else other.write_text("")
    is_a = "folder" if what == "file" else "file"
    command(name, *(word.format(other) for word in words)).refuses(f"{other}: a {is_a}, no {what}", code)


# --- runs ---

READERS: dict[str, tuple[tuple[str, ...], int]] = {
    "report": (("{}", "--out", "page.html"), FAILED),
    "compare": (("run", "{}"), NOT_COMPARABLE),
    "history": (("gelu", "--results", "{}"), FAILED),
    "export": (("{}", "--format", "bmf", "--out", "x.json"), FAILED),
}


def read(command, name: str, folder: Path) -> Ended:
    return command(name, *(a.format(folder) for a in READERS[name][0]))


def refused(command, folder: Path, says: str) -> None:
    """By every reader, in one line."""
    for name, (_, code) in READERS.items():
        read(command, name, folder).refuses(says, code)


def test_folders_without_a_run(command, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "records.jsonl").symlink_to(tmp_path / "inner" / "records.jsonl")
    (tmp_path / "folder" / "records.jsonl").mkdir(parents=True)
    for name in ("nowhere", "loop"):
        refused(command, tmp_path / name, "no such folder")
    for name in ("data.bin", "run/records.jsonl"):
        refused(command, tmp_path / name, f": a file, no folder; a run is one, here {(tmp_path / name).parent}")
    for name in ("empty", "inner"):
        refused(command, tmp_path / name, "no run in")
    refused(command, tmp_path / "folder", "cannot read the run in")


def test_one_damaged_folder_stops_no_history(command, run, tmp_path):
    """Nor a page of several runs; a gate it stops, for what is lost there may be what became worse."""
    sets = tmp_path / "sets"
    for name in ("a-good", "b-damaged", "c-good"):
        shutil.copytree(run, sets / name)
    (sets / "b-damaged" / "env.json").write_text("{")
    for name, arguments in (("history", ("gelu", "--results", sets)), ("report", (sets, "--out", "page.html"))):
        ended = command(name, *arguments)
        assert ended.code == OK and "b-damaged" in ended.err and ended.err.count("it is left out") == 1, name
    assert "gelu" in command("history", "gelu", "--results", sets).out
    command("compare", sets, run).refuses("cannot read the run in", NOT_COMPARABLE)


def test_a_run_that_may_not_be_read(command, run, monkeypatch, tmp_path):
    """Root may read everything, so the refusal is made up."""
    shutil.copytree(run, tmp_path / "closed")
    real = Path.read_bytes

    def read_bytes(file: Path) -> bytes:
        if file.parent.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    refused(command, tmp_path / "closed", "Permission denied")


ENVIRONMENTS = [b'{"cpu": {"mo', b"", b"\xff\xfe\x00", b"[1]", b"null", b"3", b"[" * 10**5]
ENVIRONMENTS += [b'{"cpu": "x"}', b'{"gpus": ["H100"]}', b'{"git": []}', b'{"kind": 7}', b'{"started": 5}']


@pytest.mark.parametrize("content", ENVIRONMENTS, ids=lambda c: str(c[:20]))
def test_a_damaged_environment_is_named_with_the_way_out(command, run, tmp_path, content):
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "env.json").write_bytes(content)
    refused(command, tmp_path / "damaged", "move it away to do without")
    (tmp_path / "damaged" / "env.json").unlink()
    assert read(command, "history", tmp_path / "damaged").code == OK


LINES = [
    b"\xff\xfe\x00garbage",
    b"[1, 2]",
    b"null",
    b"3",
    b'"text"',
    b"{",
    b"[" * 10**5,
    b'{"x": ' + b"9" * 5000 + b"}",
]
# What a record may not say, by field; None: the field is not there.
FAULTS: dict[str, list[Any]] = {
    "schema": [0, 2, "1", None],
    "status": ["splendid", ["ok"], None],
    **{name: [None, "", 3, ["a"]] for name in ("layer", "variant", "phase", "dtype")},
    "median_s": ["1", 0, -1.0, True, float("nan"), None],
    "low_s": ["x", None],
    "high_s": ["x", float("inf")],
    **{name: ["x"] for name in ("noise_floor", "of_ceiling", "error_ratio", "sm_mhz")},
    "samples": ["abc", [1, 2], [["a"]], [[]], [[None]], [[-1.0]]],
    "processes": [3, ["a"], [0]],
    "shape": ["B=4", [1]],
    **{name: [3] for name in ("shape_name", "cache", "device", "utc", "evidence", "story", "source_hash", "timer")},
    **{"case_id": [["a"]], "threads": [[1]], "control": ["no"], "canary": [3], "machine": ["x", {"mhz": "fast"}]},
}


def changed(run: Path, folder: Path, name: str, value: Any, lines: slice = slice(None)) -> Path:
    """A copy of a run in which some records say otherwise."""
    shutil.copytree(run, folder)
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    for record in records[lines]:
        record[name] = value
        if value is None:
            del record[name]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in FAULTS.items() for v in values], ids=str)
def test_a_record_that_cannot_be_relied_on_is_told_and_left_out(command, run, tmp_path, name, value):
    refused(command, changed(run, tmp_path / "all", name, value), "record")
    ended = read(command, "history", changed(run, tmp_path / "one", name, value, slice(-1, None)))
    assert ended.code == OK and "records.jsonl:5: " in ended.err and "the line is skipped" in ended.err
    assert "cpu.simd" in ended.out and "cpu.naive" not in ended.out


@pytest.mark.parametrize("line", LINES, ids=lambda x: str(x[:20]))
def test_a_line_that_is_no_record(command, run, tmp_path, line):
    shutil.copytree(run, tmp_path / "damaged")
    with (tmp_path / "damaged" / "records.jsonl").open("ab") as file:
        file.write(line + b"\n")
    for name in ("compare", "history", "export"):
        ended = read(command, name, tmp_path / "damaged")
        assert ended.code == OK and ended.err.count("records.jsonl:6: ") == ended.err.count("\n") == 1, ended.err


def test_every_field_that_the_harness_writes_is_of_the_kind_that_readers_want():
    """The committed runs, in which nothing is damaged."""
    runs = runs_in(HOME / "results")
    assert runs and [problem for run in runs for problem in run.problems] == []


def test_runs_of_nothing_and_of_failures_alone(command, run, tmp_path):
    empty = write_run(tmp_path / "empty", [])
    for name, (_, code) in READERS.items():
        read(command, name, empty).refuses("record", code)
    for status in ("wrong", "skipped"):
        failures = [failure(v, status, shape_name="model/0") for v in ("torch.eager", "cpu.simd")]
        failed = write_run(tmp_path / status, failures)
        assert read(command, "report", failed).code == OK
        assert read(command, "compare", failed).code == NOT_COMPARABLE
        read(command, "history", failed).refuses("no cold times", FAILED)
        read(command, "export", failed).refuses("nothing to export", FAILED)


# --- going on with a run ---


def test_what_cannot_be_gone_on_with(command, run, tmp_path):
    step = write_run(tmp_path / "step", step_records(np.random.default_rng(0)), kind="e2e")
    command("layer", "residual", "--resume", step).refuses("is a run of bench.e2e", FAILED)
    command("suite", "--resume", "--out", run).refuses("is a run of bench.layer", FAILED)
    command("suite", "--resume", "--out", "nowhere").refuses("no run to resume", FAILED)
    env = run / "env.json"
    env.write_text(env.read_text().replace('"schema": 1', '"schema": 2'))
    command("layer", "residual", "--resume", run).refuses("has schema 2, this program writes 1", FAILED)
    env.write_text("[1]")
    command("layer", "residual", "--resume", run).refuses("is damaged", FAILED)
    with (run / "records.jsonl").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no refusal kept it
    assert len((run / "records.jsonl").read_text().splitlines()) == 5


# --- the terminal ---


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("history", ("gelu", "--results", "run")),
        ("compare", ("run", "run")),
        ("explain", ("gelu",)),
        ("layer", ("list",)),
    ],
)
def test_a_narrow_terminal(command, run, monkeypatch, name, arguments):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    ended = command(name, *arguments)
    assert ended.code == OK and len(ended.out.splitlines()) > 5


def piped(code: str, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`code` as the main() of a command, with its stdout somewhere; the exit code is the command's."""
    script = f"import sys\nfrom bench import cli\ndef main():\n    {code}\n    return 0\ncli.run(main)\n"
    line = f'set -o pipefail; "$0" -c "$1" {redirection}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, script],
        cwd=HOME,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
    )


MANY_LINES = "[print('x' * 80) for _ in range(20000)]"
RICH_LINES = "from bench.show.terminal import console; [console().print('x' * 80) for _ in range(5000)]"


@pytest.mark.parametrize("code", (MANY_LINES, RICH_LINES))
def test_a_pipe_that_is_closed(code):
    done = piped(code, "| head -1")
    assert (done.returncode, done.stdout, done.stderr) == (OK, "x" * 80 + "\n", "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
@pytest.mark.parametrize("code", (MANY_LINES, "print('x')"))
def test_output_to_a_full_disk(code):
    done = piped(code, "> /dev/full")
    assert done.returncode == FAILED and done.stderr.startswith("error: No space left") and "\n" not in done.stderr[:-1]


def test_a_profiler_has_the_last_word_of_a_command():
    """Which ends its process by itself otherwise, without taking PyTorch apart."""
    command = [sys.executable, "-m", "cProfile", "-m", "bench.compare", "no-such", "folder"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60)
    assert "function calls" in done.stdout and "no such folder" in done.stderr


def test_output_to_nowhere_and_to_a_terminal_of_few_letters():
    done = piped("print('x')", ">&- 2>&-")
    assert (done.returncode, done.stderr) == (OK, "")
    done = piped("print('5 µs ± 1 %')", "", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (OK, "5 ?s ? 1 %\n")


def test_an_error_steers_no_terminal(command):
    command("report", "no\x1b[31m\u202esuch").refuses("no\ufffd[31m\ufffdsuch: no such folder", FAILED)


def test_a_locale_of_few_letters():
    """Sources, records and what other processes say are UTF-8 all the same; where stdout has no such letter there is
    another."""
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "print(open('README.md').read().count(chr(177)), sys.flags.utf8_mode, chr(177))"
    done = piped(code, "", **bare)
    assert done.stdout.split() == [str((HOME / "README.md").read_text().count("±")), "1", "?"], done.stderr
    command = [sys.executable, "-m", "bench.explain", "gelu"]
    printed = subprocess.run(command, cwd=HOME, capture_output=True, env=os.environ | bare, timeout=60)
    assert printed.returncode == OK and b"Traceback" not in printed.stderr and b"def forward(" in printed.stdout


@pytest.mark.parametrize("name", cli.NOT_AS_NAMED)
def test_a_variable_that_makes_a_library_something_else_is_told_and_not_obeyed(name):
    code = f"import os; print(os.environ.get('{name}'))"
    done = piped(code, "", **{name: "1"})
    assert (done.returncode, done.stdout) == (OK, "None\n") and done.stderr.startswith(f"{name}=1 is not obeyed")
    assert piped(code, "", **{name: "0"}).stderr == "", "it asks for nothing"


def test_in_a_project_with_kernels_of_its_own(tmp_path):
    """As where a kernel is brought from; also a checkout's own are taken there, and nothing of the folder stays."""
    for name in ("kernels", "reference"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    code = "import sys; before = [*sys.path]; import bench, kernels, reference; assert sys.path == before"
    code += "; print(kernels.__path__, reference.__path__)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(HOME)))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [f"['{HOME / name}']" for name in ("kernels", "reference")], done.stderr


def test_no_check_is_an_assert():
    """Which PYTHONOPTIMIZE takes away, with all that it does: asserts here say types, and call nothing else."""
    harmless = {"isinstance", "stride"}
    found = [
        f"{file.relative_to(HOME)}:{node.lineno}"
        for folder in ("bench", "kernels", "reference")
        for file in (HOME / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assert)
        for call in ast.walk(node.test)
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] not in harmless
    ]
    assert not found


# --- Ctrl-C ---


def of_session(session: int) -> list[int]:
    """The processes that a command started, and it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(of) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


LAYER = ("bench.layer", "residual", "--only", "torch.eager,cpu.simd", "--seconds", "20", "-a", "B=1", "-a", "T=8")
HANGING = ("bench.layer", "residual", "--kernels", str(EVIL), "--only", "torch.infinite_loop", "--check-only")
STEP = ("bench.e2e", "gpt2-tiny", "--kernels", "torch.eager", "--baseline", "eager", "--steps", "1000", "--data")
SIGNALS = [
    (LAYER, 1, signal.SIGINT),  # importing
    (LAYER, 3, signal.SIGINT),  # proving, with resource tracker, fork server and judge under way
    (HANGING, 5, signal.SIGTERM),  # a worker that will not end by itself
    (STEP, 4, signal.SIGINT),
    pytest.param(STEP, 3, signal.SIGTERM, marks=pytest.mark.slow),  # of both what the others have one of
    (("bench.static",), 3, signal.SIGINT),
]


def test_a_training_that_is_interrupted_keeps_the_steps_it_took(command, run, tmp_path, monkeypatch, few_tokens):
    from bench import report
    from bench.training import session

    turns = []

    def ctrl_c_in_the_third_turn():
        turns.append(1)
        if len(turns) == 5:  # two contestants
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "pause", ctrl_c_in_the_third_turn)
    what = "gpt2-tiny --kernels torch.eager --baseline eager --seq 16 --data data.bin --threads 1 --out cut"
    assert command("e2e", *what.split()).code == INTERRUPTED
    records, problems = read_records(tmp_path / "cut", MEASURED)
    rows = latest(records).values()
    assert not problems and {r["variant"] for r in rows} == {"ours", "torch.eager"}
    for r in rows:
        assert r["status"] == "skipped" and "interrupted after" in r["evidence"]
        assert len(r["losses"]) == len(r["norms"]) == len(r["samples"]) == 2 and "median_s" not in r
    assert report.main(["cut"]) == 0  # and its page says so
    assert json.loads(Path("cut/env.json").read_text())["command"] == f"python -m bench.e2e {what}"


@pytest.mark.parametrize(("arguments", "processes", "number"), SIGNALS)
def test_an_interrupted_command_says_one_line_and_leaves_nobody_behind(run, tmp_path, arguments, processes, number):
    """SIGINT goes to all processes, as from a terminal, and SIGTERM to the first alone; when so many have started."""
    more = {"bench.static": [], "bench.e2e": [str(tmp_path / "data.bin")]}.get(arguments[0], [])
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, *more, *([] if arguments[0] == "bench.static" else ["--out", str(out)])],
        cwd=HOME,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(of_session(process.pid)) < processes and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.4)  # and are at work
    assert process.poll() is None
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, errors
    assert [line for line in errors.splitlines() if "interrupted; " in line] and "Traceback" not in errors, errors
    if processes > 1 and arguments[0] in ("bench.layer", "bench.e2e"):
        assert f"is kept in {out}" in errors, "where there is what was recorded"
    gone = time.monotonic() + 5
    while (left := of_session(process.pid)) and time.monotonic() < gone:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes survived"
    if (out / "records.jsonl").exists():
        read_records(out)
        with (out / "records.jsonl").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free to be gone on with


def test_a_file_in_the_place_of_a_folder_is_said_to_be_one(tmp_path):
    """And the other way round: what the system calls it ("File exists") is no help."""
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(cli.CannotGoOn, match=r"file: File exists \(a file lies where a folder is to be"):
        Run.create("layer", file)
    with pytest.raises(OSError) as caught:
        (file / "below").mkdir()
    assert "Not a directory (a file lies where a folder is to be" in cli.cannot(caught.value)
    with pytest.raises(OSError) as caught:
        tmp_path.write_text("")
    assert "Is a directory (a folder lies where a file is to be" in cli.cannot(caught.value)
