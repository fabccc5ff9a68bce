"""A frozen teacher too large for one device: its blocks in pieces over all processes, gathered as they run.

FSDP of the whole run does not fit this method: an adapter layer runs its block without the block's hooks, which are
what gathers a sharded block. Here the parts of each frozen block (attention, feed-forward, norms) are sharded by
FSDP2's `fully_shard`, and these are called as modules wherever the block runs. Student, projectors and adapters stay
whole, and are synchronised by `DistributedDataParallel` as always.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from .distiller import Distiller


def shard_teacher(distiller: Distiller, device_type: str) -> None:
    """Shards the blocks of a distiller's teacher over all processes, in place, before the distiller is wrapped.

    Args:
        device_type: "cuda" or "cpu".

    Raises:
        ValueError: there is one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise ValueError(
            "shard_teacher=True needs several processes, over which the teacher is dealt: accelerate launch "
            "--num_processes, or leave it out and load the teacher in half precision (--teacher_dtype bfloat16)."
        )
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for block in distiller.teacher_backbone.blocks:
        for part in _frozen_parts(getattr(block, "base_layer", block)):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    # DistributedDataParallel would broadcast frozen parameters too, as if they were whole.
    frozen = [name for name, parameter in distiller.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(distiller, frozen)


def _frozen_parts(block: nn.Module) -> list[nn.Module]:
    return [part for part in block.children() if next(part.parameters(), None) is not None]
