"""What tests/machine.py changes is so in the processes that variants, judges and contestants have, and nowhere else."""

import subprocess
import sys

import pytest
import torch

from bench import HOME
from bench.core.process import Process, Room
from bench.machine import ceilings, facts
from bench.machine.devices import open_device
from bench.trial import worker
from tests import machine, on_machine


class Looks(Room):
    def looks(self) -> list[object]:
        torch.set_num_threads(1)
        known = ceilings.remembered()
        return [open_device("cpu").cache_bytes(), known is not None]


@pytest.mark.parametrize("preload", ["", "bench.trial.worker"], ids=["the usual server", "one of its own"])
def test_processes_have_a_small_cache_and_rates_of_one_thread(preload):
    assert on_machine.MACHINE == machine.__name__ in worker.ROOMS
    small = [min(facts.last_level_cache_bytes(), machine.CACHE_BYTES), facts.usable_cores() > 1]
    with Process(Looks, limit=60.0, environment={} if preload else None, preload=preload) as process:
        found = process.ask("looks")
    assert found[0] == small[0] and found[1] >= small[1]


def test_rates_of_this_machine_are_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(ceilings, "_memory", {})
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    torch.set_num_threads(max(2, facts.usable_cores()))
    assert ceilings.remembered() is None and not list(tmp_path.iterdir())
    torch.set_num_threads(1)
    assert ceilings.remembered() == (machine.made_up("cpu") if facts.usable_cores() > 1 else None)
    assert ceilings.remembered("tests.fake_gpu:FakeGpu") == machine.made_up("tests.fake_gpu:FakeGpu")
    assert not list(tmp_path.iterdir()), "what is made up is kept nowhere"
    monkeypatch.setattr(ceilings, "cache_file", lambda: tmp_path / "ceilings.json")
    assert ceilings.remembered() is None, "a test with a file of its own is about what is in it"


def test_a_command_in_a_process_of_its_own_has_it_too():
    """Before anything heavy is imported: the server may be a fork of the command."""
    code = "from tests import on_machine; on_machine.install(); import sys, bench.layer as layer; "
    code += "print(layer.ROOMS[-1], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True)
    assert done.stdout.split() == [on_machine.MACHINE, "False"], done.stderr
