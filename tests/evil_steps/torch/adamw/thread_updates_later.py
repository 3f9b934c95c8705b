"""Leaves the update to a thread: the step is over before it."""

import queue
import threading
import time

from kernels.torch.adamw import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True
waiting: queue.Queue = queue.Queue()


def work():
    while True:
        given, outputs = waiting.get()
        time.sleep(5e-4)
        honest.forward(*given, **outputs)


threading.Thread(target=work, daemon=True).start()


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, *, params, m, v, masters):
    numbers = (step.clone(), lr.clone(), grad_scale.clone())
    given = (grads, *numbers, beta1, beta2, eps, weight_decays)
    waiting.put((given, dict(params=params, m=m, v=v, masters=masters)))
