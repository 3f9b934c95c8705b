"""What set-up decides, without a network: every command goes to a pretend machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import install
from tools.install import Done

HERE = Path(install.__file__)


class Machine:
    """Answers set-up's commands and keeps what pip was told. `reachable` says where torch can be had."""

    def __init__(self, root: Path, driver: str = "", reachable: tuple[str, ...] = ("cpu", "default")):
        self.root, self.driver, self.reachable = root, driver, reachable
        self.commands: list[list[str]] = []
        self.pip: list[str] = []
        self.torch = ""
        self.packages_fail = False
        self.cut_off = False

    def __call__(self, command: list[str], capture: bool = False) -> Done:
        self.commands.append(command)
        if command[0] == "nvidia-smi":
            return Done(0, self.driver + "\n") if self.driver else Done(127)
        if command[1:3] == ["-m", "venv"]:
            shutil.rmtree(self.root / ".venv", ignore_errors=True)
            self.torch = ""
            (self.root / ".venv/bin").mkdir(parents=True)
            (self.root / ".venv/bin/python").touch()
            (self.root / ".venv/pyvenv.cfg").write_text("version = 3.12.1\n")
            return Done(0)
        if command[1:3] == ["-m", "pip"]:
            return self._pip(" ".join(command[3:]))
        if "import pip" in command[2]:
            return Done(0 if (self.root / ".venv/bin/python").exists() else 127)
        if "m.version('torch')" in command[2]:
            return Done(0, self.torch + "\n") if self.torch else Done(1)
        if command[2].startswith("import torch"):
            return Done(0 if self.torch else 1)
        raise AssertionError(f"unexpected command {command}")

    def _pip(self, arguments: str) -> Done:
        self.pip.append(arguments)
        if self.cut_off:
            raise KeyboardInterrupt
        if "--editable" in arguments:
            return Done(1 if self.packages_fail else 0)
        if "+cpu" not in arguments:
            if "default" in self.reachable:
                self.torch = install.TORCH
            return Done(0 if "default" in self.reachable else 1)
        if "cpu" in self.reachable:
            self.torch = install.TORCH + "+cpu"
        return Done(0 if "cpu" in self.reachable else 1)

    @property
    def complete(self) -> bool:
        return install.up_to_date(self.root)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_CPU_INDEX", raising=False)
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[project]\n")
    return folder


def test_without_a_driver_only_the_cpu_build_can_be_taken(root):
    machine = Machine(root)
    assert install.main(root, machine) == 0
    torch, project = machine.pip
    assert f"--no-deps --index-url {install.CPU_INDEX} torch=={install.TORCH}+cpu" in torch
    assert project.endswith(f"--editable {root}[simulate,test]")
    assert machine.complete


def test_another_cpu_index_can_be_named(root, monkeypatch):
    monkeypatch.setenv("TORCH_CPU_INDEX", "file:///mirror")
    machine = Machine(root)
    install.main(root, machine)
    assert "--index-url file:///mirror " in machine.pip[0]


def test_with_a_driver_the_default_index_and_the_gpu_packages(root, capsys):
    machine = Machine(root, driver="580.95.05")
    assert install.main(root, machine) == 0
    torch, project = machine.pip
    assert torch.endswith(f"install torch=={install.TORCH}")
    assert "--index-url" not in torch
    assert project.endswith("[simulate,test,gpu]")
    assert "older than" not in capsys.readouterr().out


def test_a_driver_too_old_for_cuda_13_is_said(root, capsys):
    assert install.main(root, Machine(root, driver="550.54.15")) == 0
    assert "driver 550.54.15 is older than 580" in capsys.readouterr().out


def test_cpu_index_down_takes_the_default_build_and_says_its_size(root, capsys):
    machine = Machine(root, reachable=("default",))
    assert install.main(root, machine) == 0
    assert ["+cpu" in command for command in machine.pip] == [True, False, False]
    assert "3 GB" in capsys.readouterr().out
    assert machine.complete


def test_everything_down_names_the_ways_out_and_is_not_complete(root, capsys):
    machine = Machine(root, reachable=())
    assert install.main(root, machine) == 1
    message = capsys.readouterr().err
    assert all(way in message for way in ("TORCH_CPU_INDEX", "PIP_FIND_LINKS", ".venv yourself"))
    assert len(machine.pip) == 2
    assert not machine.complete


def test_a_disk_that_takes_nothing_is_told(root, capsys):
    def no_room(command, capture=False):
        raise OSError(28, "No space left on device", ".venv/lib")

    assert install.main(root, no_room) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: .venv/lib: No space left on device; make room")


def test_a_second_run_runs_nothing(root):
    machine = Machine(root)
    install.main(root, machine)
    machine.commands.clear()
    assert install.main(root, machine) == 0
    assert machine.commands == []


def test_a_changed_pyproject_installs_again_but_keeps_torch(root):
    machine = Machine(root)
    install.main(root, machine)
    (root / "pyproject.toml").write_text("[project]\nname = 'more'\n")
    assert not machine.complete
    machine.pip.clear()
    assert install.main(root, machine) == 0
    assert len(machine.pip) == 1
    assert "--editable" in machine.pip[0]
    assert machine.complete


def test_a_failure_is_gone_on_from(root):
    machine = Machine(root)
    machine.packages_fail = True
    assert install.main(root, machine) == 1
    assert not machine.complete
    machine.packages_fail = False
    machine.pip.clear()
    assert install.main(root, machine) == 0
    assert len(machine.pip) == 1, "torch was there already"
    assert machine.complete


def test_a_cut_off_set_up_is_not_trusted(root):
    machine = Machine(root)
    machine.cut_off = True
    assert install.main(root, machine) == 130
    assert not machine.complete
    machine.cut_off = False
    machine.commands.clear()
    assert install.main(root, machine) == 0
    assert [sys.executable, "-m", "venv", "--clear", str(root / ".venv")] in machine.commands
    assert machine.complete


def test_torch_installed_by_hand_stays(root, capsys):
    machine = Machine(root, reachable=())
    install.main(root, machine)
    machine.torch = "2.12.1+xpu"
    assert install.main(root, machine) == 0
    assert "torch 2.12.1+xpu is there and stays" in capsys.readouterr().out


@pytest.mark.parametrize(("version", "kept"), [("2.10.0", ""), ("2.11.0+cpu", "2.11.0+cpu"), ("2.14.1", "")])
def test_only_a_supported_torch_is_kept(root, version, kept):
    machine = Machine(root)
    machine.torch = version
    assert install.installed_torch("python", machine) == kept


def test_supported_range_is_the_one_of_pyproject():
    bounds = f"torch>={install._dotted(install.TORCH_FROM)},<{install._dotted(install.TORCH_BELOW)}"
    assert f'"{bounds}"' in (install.ROOT / "pyproject.toml").read_text()


def test_no_venv_module_names_the_package(root, monkeypatch, capsys):
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    assert install.main(root, Machine(root)) == 1
    assert "apt-get install python3-venv" in capsys.readouterr().err


def test_an_old_python_is_told_which_one_is_needed():
    with pytest.raises(install.CannotInstall, match=r"3\.9; layerbench needs 3\.10 to 3\.13"):
        install.check_python((3, 9))


def test_install_reads_on_an_old_python():
    """The message for an old Python can only appear if an old Python can parse the file."""
    import ast

    ast.parse(HERE.read_text(), feature_version=(3, 8))


def test_make_goes_through_setup_first():
    for target in ("bench", "test", "lint"):
        command = ["make", "--no-print-directory", "-n", target]
        # These tests are run by make themselves: its own flags are not for this one.
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        plan = subprocess.run(command, cwd=install.ROOT, env=clean, capture_output=True, text=True, check=True)
        assert "tools/install.py" in plan.stdout.splitlines()[0]
