"""PyTorch's own way to train on several processes, beside ours: FSDP2, parameters, gradients and optimizer sharded.

Each rank's baseline is a process of its own, and these meet among themselves. Source: Zhao et al. 2023, PyTorch FSDP;
torch.distributed.fsdp.fully_shard.
"""

import datetime

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bench.machine.devices import is_gpu
from bench.models.calls import Batch
from bench.trainer.peers import PATIENCE_S
from bench.training.rooms import Job, TorchRoom


class FsdpRoom(TorchRoom):
    """Rank `rank` of `ranks`, which meet at `address`, host:port: every block is sharded, and what is outside of them
    together. In bf16: fp32 shards, computed with in bf16, gradients summed in fp32."""

    def __init__(self, job: Job, rank: int, ranks: int, address: str):
        super().__init__(job, "eager")
        device = "cuda" if is_gpu(job.device) else "cpu"
        if device == "cuda":
            torch.cuda.set_device(self.device.place)
        patience = datetime.timedelta(seconds=PATIENCE_S)
        host, _, port = address.rpartition(":")
        # Not by tcp://, for under torchrun nobody would open that port: its own store would be asked for.
        store = dist.TCPStore(host, int(port), ranks, rank == 0, patience)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
        mesh = init_device_mesh(device, (ranks,))
        policy = MixedPrecisionPolicy()
        if self.autocast:
            policy = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
            self.recipe[0] = "fp32 shards, computed with in bf16, gradients summed in fp32"
        for block in self.model.children():
            if next(block.children(), None) is not None:  # a block of the model, and no single norm
                fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.model, mesh=mesh, mp_policy=policy)
        self.autocast = False
        self.recipe.insert(0, f"FSDP2 on {ranks} ranks, by block")

    def parameters(self, perturbed: int | None = None) -> dict[str, torch.Tensor]:
        shards = self.model.named()
        found: dict[str, torch.Tensor] = {}
        for name, whole in super().parameters(perturbed).items():
            shard = shards[name]
            assert isinstance(shard, DTensor)
            found[name] = distribute_tensor(whole.float().to(self.device.place), shard.device_mesh, shard.placements)
        return found

    def _step(self, batches: list[Batch], lr: float, details: bool) -> tuple[float, float, dict[str, float]]:
        """The loss is the mean of all ranks, as ours is."""
        loss, norm, norms = super()._step(batches, lr, details)
        mean = torch.tensor(loss, dtype=torch.float64, device=self.device.place)
        dist.all_reduce(mean)
        return mean.item() / dist.get_world_size(), norm, norms

    def _clip(self) -> torch.Tensor | float:
        norm = super()._clip()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
