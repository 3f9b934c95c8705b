"""Spot checks: some steps of a training are judged, and which ones is drawn when what is judged is over.

The judge is a process that never loads a kernel. Of a step that was drawn after its gradients were there it is handed
parameters, batches and gradients, and takes the step again (bench/training/spot.py); training waits, off the clock. Of
one that was drawn after its update it gets a sample of the optimizer's state before and after, and says by AdamW's
formula what must have become of it (bench/training/gate.py). "Before" is what the last update left, so that whoever
writes to a parameter in between is seen, too. Then the functions that Python, PyTorch and the harness are made of are
looked at, what a kernel may set, and whether this process's clock is the judge's.

The first step and the last are always judged, others at random, as many as take SHARE of the time for each kind; so is
one batch's loss of validations.
Several ranks: gradients and updates are not judged, for no rank has all of them.
"""

import math
import random
import time
from collections.abc import Callable

from bench.cli import CannotGoOn
from bench.core import world
from bench.core.shared import stored
from bench.machine import facts
from bench.machine.devices import is_gpu
from bench.models.step import Step
from bench.trainer.plan import Plan
from bench.training.field import Field
from bench.training.rooms import GRADIENT, PARAMETER, NumpyBatch, Sample

SHARE = 0.005  # of the time of training
APART_S = 0.05  # what the judge's clock may differ by, besides what the question took
BYTES_A_PARAMETER = 32  # of the judge: two trainings' weights and gradients, one of them in fp64; and what it is handed
WATCHED = (*world.OF_FUNCTIONS, *world.HOOKS, *world.ARITHMETIC)


class Lot:
    """Whether a step is looked at, drawn by a generator that nobody can foresee. cost_s: of the last look."""

    def __init__(self) -> None:
        self.cost_s = math.inf
        self._draw = random.SystemRandom().random

    def drawn(self, step_s: float) -> bool:
        return self._draw() * self.cost_s < SHARE * step_s


class Spot:
    """Make it before any kernel is loaded. `begin` once the step has its parameters, then `gradients` and `updated` in
    each step say what is wrong, in a line; "" for nothing, and where nobody looks."""

    def __init__(self, plan: Plan, told: Callable[[str], None]):
        """told: hears why nothing can be judged."""
        world.guard()
        self.seal = world.sealed()
        self.world = world.of(WATCHED, world.take())
        self.plan, self.told = plan, told
        self.clock = time.perf_counter
        self.of_gradients, self.of_update, self.of_evaluation = Lot(), Lot(), Lot()
        self.judges = True
        self.looks = 0

    def begin(self, step: Step, field: Field, number: int, last: int) -> None:
        """number, last: of the first step and of the last one, from 1. field: whose judge is asked."""
        self.step, self.field, self.always = step, field, (number, last)
        self.evaluated_at = self.clock()
        self.sample = Sample(step.memory)
        self.before = self.sample.read()
        have, need = facts.available_bytes(), self.plan.model.parameters * BYTES_A_PARAMETER
        if step.ranks > 1:
            self._ends("several ranks train")
        elif have and need > have and not is_gpu(self.plan.race.job.device):
            self._ends(f"it takes {need / 1e9:.0f} GB, {have / 1e9:.0f} GB are free")

    def _ends(self, why: str) -> None:
        self.judges = False
        self.told(f"gradients and updates are not judged: {why}")

    def gradients(self, number: int, step_s: float, batches: list[NumpyBatch], loss: float, norm: float) -> str:
        """After a step's gradients, which took `step_s`."""
        finite = math.isfinite(loss) and math.isfinite(norm)  # what is not is told without this
        if not self.judges or not finite or not (number in self.always or self.of_gradients.drawn(step_s)):
            return ""
        begin = self.clock()
        mem = self.step.memory
        values = {PARAMETER + name: p for name, p in mem.params.items()}
        box, given = stored({**values, **{GRADIENT + name: g for name, g in mem.grads.items()}})
        asked = dict(given=given, batches=batches, loss=loss, norm=norm, step=number)
        found = self._asked("again", **asked)
        box.close()
        self.of_gradients.cost_s = self.clock() - begin
        return found

    def evaluated(self, number: int, losses: list[tuple[NumpyBatch, float]]) -> str:
        """After a validation: (batch, mean loss that was told of it). One batch of the first validation and of the last
        is judged, of others in their share of the time; drawn now that all are over."""
        begin = self.clock()
        apart, self.evaluated_at = begin - self.evaluated_at, begin
        always = number == self.always[1] or math.isinf(self.of_evaluation.cost_s)
        batch, loss = random.SystemRandom().choice(losses)
        if not self.judges or not math.isfinite(loss) or not (always or self.of_evaluation.drawn(apart)):
            return ""
        box, given = stored(dict(self.step.memory.params))
        found = self._asked("evaluated", given=given, batch=batch, loss=loss, step=number)
        box.close()
        self.of_evaluation.cost_s = self.clock() - begin
        return found

    def updated(self, number: int, step_s: float, lr: float, norm: float, updates: int) -> str:
        """After a step's update, or after none where `norm`, that of its gradients, is not finite or NaN is given for
        it. updates: with this one."""
        before, self.before = self.before, self.sample.read()
        if not (number in self.always or self.of_update.drawn(step_s)):
            return ""
        begin = self.clock()
        found = ""
        if self.judges:
            update = self.sample.update(before, self.before, lr)
            found = self._asked("updated", update=update, norm=norm, step=number, updates=updates)
        found = found or self._of_the_process()
        self.of_update.cost_s = self.clock() - begin
        return found

    def _asked(self, command: str, **arguments: object) -> str:
        """What the judge says. Who cannot be asked ends the judging, and not the training."""
        try:
            found = self.field.judge.ask(command, limit=self.plan.race.time_limit, **arguments)
        except CannotGoOn as error:
            self._ends(str(error))
            return ""
        self.looks += 1
        return f"inaccurate: {found[0]}" if found else ""

    def _of_the_process(self) -> str:
        if changed := world.difference(self.world, world.of(WATCHED, world.take())):
            return f"global_state: {changed}, since before the kernels were loaded"
        if not self.judges:
            return ""
        begin = self.clock()
        try:
            now = self.field.judge.ask("now", limit=self.plan.race.time_limit)
        except CannotGoOn as error:
            self._ends(str(error))
            return ""
        end = self.clock()
        if not begin - APART_S <= now <= end + APART_S:
            return f"clock: this process's clock tells {now - end:+.3f} s another time than the judge's"
        return ""
