"""What a process wants of the cores while others have their turns."""

import os
import signal
import subprocess
import sys
import time

from bench.machine import compared, facts

BURNS = "while True: pass"
A_CHILD_BURNS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURNS!r}])"
SLEEPS = "import time; time.sleep(60)"


def test_who_is_at_work_between_its_turns_is_told(monkeypatch):
    """By itself or by a child; who sleeps is not, nor who has an OpenMP runtime more, whose threads may turn."""
    monkeypatch.setattr(compared, "RESTED_S", 0.1)
    codes = (SLEEPS, BURNS, A_CHILD_BURNS)
    started = [subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for code in codes]
    try:
        rests = [compared.rest_of(p.pid) for p in started]
        until = time.monotonic() + 20
        while facts.wanted_s(started[2].pid) < 0.3 and time.monotonic() < until:
            time.sleep(0.05)  # until the child is there
        for rest in rests:
            rest.begin()
        time.sleep(0.3)
        for rest in rests:
            rest.end()
        sleeps, burns, has_a_child = rests
        assert sleeps.evidence([sleeps]) == ""
        for rest in (burns, has_a_child):
            assert "of a core while others had their turns" in rest.evidence([sleeps])
            assert rest.evidence([burns]) == "", "no more than the others"
        burns.runtimes = lambda: 2
        assert burns.evidence([sleeps]) == ""
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
