"""A training run's ranks.

    torchrun --nproc_per_node 2 -m bench.train gpt2-124m …        or      srun -n 16 python -m bench.train gpt2-124m …

    ranks = Ranks.join()                         one process is `Ranks()`, which costs nothing
    ranks.reduce(step, "sharded")                from then on step.run trains with all of them
    ranks.any(stop), ranks.mean(loss), …         the same answer everywhere

Every rank keeps the whole model and takes its part of a step's micro-batches; forward and backward are as in one
process.
"""

from bench.models.step import Step
from bench.trainer.peers import Peers
from bench.trainer.reduction import BUCKET_BYTES, Reduction
from bench.trainer.sharded import Sharded


class Ranks(Peers):
    """This process among those that train together."""

    def reduce(
        self,
        step: Step,
        optimizer: str = "replicated",
        bucket_bytes: int = BUCKET_BYTES,
        ordered: bool | None = None,
    ) -> None:
        """From now on `step` trains with all ranks: gradients are summed (see reduction.py) before the norm is taken,
        and its loss is the mean of all. A Step of as many ranks; `step.load` follows. One process: nothing changes.

        optimizer: "replicated", every rank updates everything; "sharded", each its part, and it keeps only that part of
        the optimizer's state (see sharded.py). ordered: see Reduction.
        """
        if self.ranks == 1:
            return
        if step.replay:
            raise ValueError("a step that is recorded as graphs does not see the other ranks")
        sharded = optimizer == "sharded"
        reduction = Reduction(self, step, sharded, bucket_bytes, ordered)
        if sharded:
            step.shards = Sharded(self, step, reduction)
