"""Spot checks: some steps of a training are judged, and which ones is drawn when what is judged is over.

The judge is a process that never loads a kernel. Of a step that was drawn after its gradients were there it is handed
parameters, batches and gradients, and takes the step again (bench/training/spot.py); training waits, off the clock. Of
one that was drawn after its update it gets a sample of the optimizer's state before and after, and says by AdamW's
formula what must have become of it (bench/training/gate.py). "Before" is what the last update left, so that whoever
writes to a parameter in between is seen, too, also where a master's value takes its place again. Then the functions
that Python, PyTorch and the harness are made of are looked at, what a kernel may set, and whether this process's clock
is the judge's.

The first step and the last are always judged, others at random, as many as take SHARE of the time for each kind; so is
one batch of validations, and one of questions with four endings.

Of several ranks the first one's judge looks: at the gradients of all, which that rank has when they are summed (a
sharded optimizer's ranks send it their parts), on the batches of all; at a sample of each rank's update, or none where
the optimizer's state is spread over them; and at a validation batch of any of them. Each looks at its own process.
"""

import math
import random
import time
from collections.abc import Callable

from bench.cli import CannotGoOn
from bench.core import deeds, replaced, world
from bench.core.shared import stored
from bench.machine import facts
from bench.machine.devices import is_gpu
from bench.models.step import Step
from bench.trainer.evaluate import Tellings, Told
from bench.trainer.plan import Plan
from bench.trainer.ranks import Ranks
from bench.training.field import Field
from bench.training.rooms import GRADIENT, PARAMETER, NumpyBatch, Sample, same

SHARE = 0.005  # of the time of training
APART_S = 0.05  # what the judge's clock may differ by, besides what the question took
BYTES_A_PARAMETER = 32  # of the judge: two trainings' weights and gradients, one of them in fp64; and what it is handed


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

    def __init__(self, plan: Plan, told: Callable[[str], None], ranks: Ranks):
        """told: hears why nothing can be judged."""
        deeds.guard()
        self.seal = replaced.sealed()
        self.world = world.of(world.LEFT_ALONE, world.take())
        self.plan, self.told, self.ranks = plan, told, ranks
        self.clock = time.perf_counter
        self.of_gradients, self.of_update = Lot(), Lot()
        self.of_evaluations = {"validation": Lot(), "questions": Lot()}
        self.judges = True
        self.looks = 0

    def begin(
        self, step: Step, field: Field, number: int, last: int, batches: Callable[[int], list[NumpyBatch]]
    ) -> None:
        """number, last: of the first step and of the last one, from 1. field: whose judge is asked. batches: of all
        ranks, by the number of a step from 0."""
        self.step, self.field, self.always, self.batches = step, field, (number, last), batches
        self.evaluated_at = dict.fromkeys(self.of_evaluations, self.clock())
        if not step.shards:
            self.sample = Sample(step.memory)
            self.before = self.sample.read()
        have, need = facts.available_bytes(), self.plan.model.parameters * BYTES_A_PARAMETER
        if have and need > have and not is_gpu(self.plan.race.job.device):
            self._ends(f"it takes {need / 1e9:.0f} GB, {have / 1e9:.0f} GB are free")

    def _ends(self, why: str) -> None:
        self.judges = False
        self.told(f"gradients and updates are not judged: {why}")

    def gradients(self, number: int, step_s: float, batches: list[NumpyBatch], loss: float, norm: float) -> str:
        """After a step's gradients, which took `step_s`."""
        finite = math.isfinite(loss) and math.isfinite(norm)  # what is not is told without this
        look = self.judges and finite and (number in self.always or self.of_gradients.drawn(step_s))
        begin = self.clock()
        if self.step.shards and (look := self._all(look)):
            self.step.shards.whole_gradients()
        if not look or not self.ranks.main:
            return ""
        if not self.step.shards and not same(self.before, self.sample.read()):
            return "inaccurate: parameters, or what the optimizer keeps of them, changed before the update"
        mem = self.step.memory
        batches = self.batches(number - 1) if self.ranks.ranks > 1 else batches
        values = {PARAMETER + name: p for name, p in mem.params.items()}
        box, given = stored({**values, **{GRADIENT + name: g for name, g in mem.grads.items()}})
        asked = dict(given=[given], batches=batches, loss=loss, norm=norm, step=number)
        found = self._asked("again", **asked)
        box.close()
        self.of_gradients.cost_s = self.clock() - begin
        return found

    def evaluated(self, kind: str, number: int, told: Tellings) -> str:
        """After a "validation", or "questions": what was told of each batch. One batch of the first one and of the last
        is judged, of others in their share of the time; drawn now that all are over."""
        begin, lot = self.clock(), self.of_evaluations[kind]
        apart, self.evaluated_at[kind] = begin - self.evaluated_at[kind], begin
        always = number == self.always[1] or math.isinf(lot.cost_s)
        look = self._all(self.judges and (always or lot.drawn(apart)))
        if not look:
            return ""
        one = self._any_of(told)
        if not self.ranks.main or not all(map(math.isfinite, one.means)):
            return ""
        box, given = stored(dict(self.step.memory.params))
        asked = dict(given=given, batch=one.batch, groups=one.groups, means=one.means, step=number)
        found = self._asked("evaluated", **asked)
        box.close()
        lot.cost_s = self.clock() - begin
        return found

    def updated(self, number: int, step_s: float, lr: float, norm: float, updates: int) -> str:
        """After a step's update, or after none where `norm`, that of its gradients, is not finite or NaN is given for
        it. updates: with this one."""
        if not self.step.shards:
            before, self.before = self.before, self.sample.read()
        if not self._all(number in self.always or self.of_update.drawn(step_s)):
            return ""
        begin = self.clock()
        found = ""
        if self._all(self.judges) and not self.step.shards:
            theirs = self.ranks.everyones(self.sample.update(before, self.before, lr))
            for update in theirs if self.ranks.main else ():
                found = found or self._asked("updated", update=update, norm=norm, step=number, updates=updates)
        found = found or self._of_the_process()
        self.of_update.cost_s = self.clock() - begin
        return found

    def _all(self, look: bool) -> bool:
        """What rank 0 drew, for it needs all ranks to look."""
        return bool(self.ranks.all(float(look))[0])

    def _any_of(self, told: Tellings) -> Told:
        """One of all ranks'."""
        draw, counts = random.SystemRandom(), self.ranks.all(len(told))
        rank, at = self.ranks.first(draw.choice([(r, i) for r, n in enumerate(counts) for i in range(int(n))]))
        one = self.ranks.everyones(told[at]() if rank == self.ranks.rank else None)[rank]
        assert one
        return one

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
        if changed := world.difference(self.world, world.of(world.LEFT_ALONE, world.take())):
            return f"global_state: {changed}, since before the kernels were loaded"
        if not self.judges or not self.ranks.main:
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
