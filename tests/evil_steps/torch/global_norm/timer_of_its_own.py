"""Puts a timer of its own onto the one device that a process has: steps take half as long."""

from bench.machine import devices
from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "error"
CAUGHT_IN = "step"
SLOW = True
device = devices.open_device("cpu")
honest_timer = device.timer


class Half:
    def __init__(self, timer):
        self.timer = timer

    def __enter__(self):
        self.timer.__enter__()
        return self

    def __exit__(self, *failed):
        return self.timer.__exit__(*failed)

    def start(self):
        self.timer.start()

    def stop(self):
        self.timer.stop()

    @property
    def seconds(self):
        return [s / 2 for s in self.timer.seconds]


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    device.timer = lambda *given: Half(honest_timer(*given))
