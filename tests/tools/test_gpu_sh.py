"""tools/gpu.sh with a python that only writes down what it is asked: which suite runs when, and what comes home."""

import os
import stat
import subprocess
import tarfile

import pytest

from bench import HOME

PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit ${TORCH:-0}
echo "$@" >>asked
out= resume= pack=
while [ $# -gt 0 ]; do
    case $1 in --out) out=$2 ;; --pack) pack=$2 ;; --resume) resume=1 ;; esac
    shift
done
if [ "$resume" ] && [ "${REFUSES:-}" ]; then exit 1; fi
mkdir -p "$out" && echo "{}" >>"$out/records.jsonl" && date +%N >"$out/env.json"
for n in $(seq "${PACKED:-2}"); do touch "$pack/time-$n.tar.gz"; done
mkdir -p "$LAYERBENCH_CACHE/cuda" "$LAYERBENCH_CACHE/inductor" "$LAYERBENCH_CACHE/triton/k"
touch "$LAYERBENCH_CACHE/triton/k/a.cubin" "$LAYERBENCH_CACHE/triton/k/a.ttgir"
echo "{}" >"$LAYERBENCH_CACHE/tuned.json" && head -c "${INDUCTOR:-1}" /dev/urandom >"$LAYERBENCH_CACHE/inductor/y"
head -c "${CACHED:-10}" /dev/urandom >"$LAYERBENCH_CACHE/cuda/x"
exit ${CODE:-0}
"""


@pytest.fixture
def call(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)

    def run(*arguments: str, **environment: str) -> tuple[int, list[str], set[str]]:
        """(exit code, the suites that were started, what lies in OUT)."""
        (tmp_path / "asked").unlink(missing_ok=True)
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("LAYERBENCH", "GPU", "MINUTES", "MORE"))}
        done = subprocess.run(
            ["sh", str(HOME / "tools" / "gpu.sh"), *arguments],
            cwd=tmp_path,
            env=ours | {"PYTHON": str(python)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        asked = tmp_path / "asked"
        out = tmp_path / "out"
        names = {f.name for f in out.iterdir()} if out.exists() else set()
        return done.returncode, asked.read_text().splitlines() if asked.exists() else [], names

    return run


def test_the_first_call_begins_and_brings_results_and_cache_home(call, tmp_path):
    code, asked, home = call("first", "out")
    assert code == 0
    assert asked == ["-m bench.suite --device cuda --minutes 3.4 --pack out --out runs/gpu"]
    assert home == {"time-1.tar.gz", "time-2.tar.gz", "cache.tar.gz"}
    (tmp_path / "runs" / "prepared.tar.gz").touch()
    _, asked, _ = call("first", "out", CODE="2")
    assert asked[0].endswith("--out runs/gpu --resume --prepared runs/prepared.tar.gz")


def test_the_second_goes_on_with_what_was_brought_back(call, tmp_path):
    call("first", "out")
    (tmp_path / "out" / "cache.tar.gz").rename(tmp_path / "runs" / "gpu-cache.tar.gz")
    (tmp_path / "runs" / "gpu-cache" / "cuda" / "x").unlink()
    code, asked, _ = call("second", "out", CODE="2", CACHED="0")
    assert code == 2 and asked == ["-m bench.suite --device cuda --minutes 7.3 --pack out --out runs/gpu --resume"]


def test_what_another_machine_measured_is_left_alone_and_begun_anew(call, tmp_path):
    call("first", "out")
    before = (tmp_path / "runs" / "gpu" / "records.jsonl").read_text()
    code, asked, _ = call("second", "out", REFUSES="1")
    assert code == 0 and [a.split("--out ")[1] for a in asked] == ["runs/gpu --resume", "runs/gpu-new"]
    assert (tmp_path / "runs" / "gpu" / "records.jsonl").read_text() == before


def test_a_suite_with_a_crash_in_it_is_not_run_twice(call):
    call("first", "out")
    code, asked, _ = call("second", "out", CODE="1")
    assert code == 1 and len(asked) == 1


def test_never_more_than_eight_files_and_none_that_is_too_large_come_home(call, tmp_path):
    _, _, home = call("first", "out", PACKED="1", CACHED=str(17 << 20))
    assert all((tmp_path / "out" / name).stat().st_size <= 16 << 20 for name in home)
    _, _, home = call("second", "out", PACKED="8")
    assert len(home) == 8 and "cache.tar.gz" not in home


def packed(folder) -> set[str]:
    with tarfile.open(folder / "cache.tar.gz") as archive:
        return set(archive.getnames())


def test_what_was_prepared_and_what_is_for_people_does_not_crowd_out_what_was_learned(call, tmp_path):
    kept, compiled = {"./tuned.json"}, {"./cuda/x", "./triton/k/a.cubin"}
    call("first", "out")
    assert packed(tmp_path / "out") == kept | compiled | {"./inductor/y"}
    large = str(17 << 20)
    call("second", "out", INDUCTOR=large)
    assert packed(tmp_path / "out") == kept | compiled
    call("second", "out", CACHED=large)
    assert packed(tmp_path / "out") == kept
    with tarfile.open(tmp_path / "runs" / "prepared.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cache/cuda/x"))
    call("second", "out", CACHED=large, INDUCTOR="1")
    assert packed(tmp_path / "out") == kept | {"./triton/k/a.cubin", "./inductor/y"}


def test_without_torch_it_says_so_and_installs_nothing(call, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("sh", "mkdir", "sed"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    code, asked, _ = call("first", "out", TORCH="1", PATH=str(tmp_path / "bin"))
    assert code == 3 and not asked
    assert call("third")[0] == 64


def test_make_gpu_installs_nothing():
    for there, python in (("/bin/sh", "/bin/sh"), ("/nowhere/python", "python3")):
        done = subprocess.run(
            ["make", "--no-print-directory", "-n", "gpu", f"PY={there}"],
            cwd=HOME,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "install" not in done.stdout and done.stdout.startswith(f"{python} -m bench.suite --device cuda --out")
