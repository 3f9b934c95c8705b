"""How OpenMP's threads wait for their next work: they look for it again and again, some ten milliseconds long.

    waits = ShortWaits()        from here on they go to sleep almost at once
    waits.end()                 as before

Where a core has more to do than one process, whoever looks takes it from who works. GNU's runtime (libgomp, which
PyTorch brings) reads from the environment how long its threads look, once, as it is loaded; but they look for a
thousandth of that as long as the process has more OpenMP threads than cores (libgomp manual, GOMP_SPINCOUNT). So one
thread too many, which sleeps, is enough. Other runtimes do as they always do.
"""

import threading

import torch

PARALLEL = 1 << 16  # elements that PyTorch works on in more than one thread


class ShortWaits:
    def __init__(self) -> None:
        """Begins at once; nothing to do where PyTorch has one thread. The thread and its own team are asleep."""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if torch.get_num_threads() > 1:
            there = threading.Event()
            self._thread = threading.Thread(target=self._wait, args=(there,), name="short waits", daemon=True)
            self._thread.start()
            there.wait()

    def _wait(self, there: threading.Event) -> None:
        try:
            torch.zeros(PARALLEL).add_(1)  # a team of its own, which ends with this thread
        finally:
            there.set()
        self._over.wait()

    def end(self) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
        self._thread = None
