"""Watching a variant: what is broken is told with evidence, what is right is timed, half a file is waited for."""

import pytest

from bench import layer
from bench.cli import USAGE, CannotGoOn
from bench.cli import WRONG as WRONG_CODE
from bench.show import terminal
from bench.trial import watch
from bench.trial.plan import plan_of

RIGHT = '"""Adds."""\n\nimport torch\n\n\ndef forward(a, b, *, out):\n    torch.add(a, b, out=out)\n'
WRONG = RIGHT.replace("torch.add(a, b, out=out)", "torch.add(a, b, out=out)\n    out.view(-1)[1::3] = 7")
ARGUMENTS = ["residual", "--only", "torch.mine", "--watch", "--shape", "gpt2-tiny", "-a", "B=1", "-a", "T=8"]


def planned(*arguments):
    return plan_of(**vars(layer.parser().parse_args(arguments)), argv=[])


def mine(folder):
    return planned(*ARGUMENTS, "--kernels", str(folder))


def test_each_save_is_proved_and_what_is_right_is_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "BASELINES", ("torch.eager",))  # another one compiles for seconds
    monkeypatch.setattr(watch, "SECONDS", 0.5)
    file = tmp_path / "torch" / "residual" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(WRONG)
    saves = iter([RIGHT, RIGHT + "def (", None])

    def wait(seen):
        text = next(saves)
        if text is not None:
            file.write_text(text)
        return text

    assert watch.watch(mine(tmp_path), wait) == 0
    said = capsys.readouterr().out
    first, second, third = said.split("waiting for a change")[:3]
    assert "inaccurate" in first and "one in 3" in first and "vs torch" not in first
    assert "ok" in second and "vs torch" in second and "torch.eager" in second
    assert "error: " in third and "line" in third
    assert "Results:" not in said, "nothing is kept"


def test_a_save_while_it_is_timed_begins_anew(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "BASELINES", ())
    monkeypatch.setattr(watch, "SECONDS", 0.2)
    file = tmp_path / "torch" / "residual" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(RIGHT)
    monkeypatch.setattr(
        terminal.Screen, "progress", lambda _, said: file.write_text(WRONG) if "warming up" in said else None
    )
    assert watch.watch(mine(tmp_path), lambda seen: None) == 0
    first, second = capsys.readouterr().out.split("saved while it was timed")
    assert "ok" in first and "inaccurate" in second and "vs torch" not in first + second


def test_a_file_that_is_gone_is_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "once", lambda plan: WRONG_CODE)
    file = tmp_path / "torch" / "residual" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(RIGHT)
    saves = iter([lambda: file.unlink() or True, lambda: file.write_text(RIGHT), lambda: None])
    assert watch.watch(mine(tmp_path), lambda seen: next(saves)()) == 0
    said = capsys.readouterr().out.split("waiting for a change")
    assert "the file of torch.mine is gone" in said[1] and "error" not in said[0] + said[2]


def test_what_is_only_simulated_here_is_not_timed(monkeypatch):
    monkeypatch.setattr(watch, "_run", lambda *_, **__: pytest.fail("PyTorch alone would be timed"))
    watch.race(planned("gelu", "--only", "triton.block", "--watch"))


def test_a_change_of_the_source_is_seen(tmp_path):
    file = tmp_path / "torch" / "residual" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(RIGHT)
    plan = mine(tmp_path)
    before = watch.look(plan)
    assert watch.look(plan) == before
    file.write_text(WRONG)
    assert watch.wait_for_change(plan, before) != before


def test_it_wants_one_layer_and_a_name():
    with pytest.raises(CannotGoOn, match="--only") as caught:
        layer.main(["residual", "--watch"])
    assert caught.value.code == USAGE
    with pytest.raises(CannotGoOn, match="one layer"):
        layer.main(["all", "--only", "cpu.naive", "--watch"])
