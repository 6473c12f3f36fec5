"""Data-parallel training on top of a crew: plain PyTorch that survives the death of its ranks.

`DataParallel` does the whole step (average, vote, advance, apply or retry); what it is made of can be used on its own:
process groups that give up together (`groups`), averaging (`average`), moving the state (`transfer`), dividing data (`sharding`).
"""

from coxless.training.average import average_buffers, average_gradients
from coxless.training.background import Background
from coxless.training.groups import CollectiveFailed, EpochGroup, open_group
from coxless.training.sharding import batch_at, generator, shard
from coxless.training.trainer import CrewFinished, DataParallel, Step
from coxless.training.transfer import broadcast_state, pack, unpack

__all__ = [
    "Background",
    "CollectiveFailed",
    "CrewFinished",
    "DataParallel",
    "EpochGroup",
    "Step",
    "average_buffers",
    "average_gradients",
    "batch_at",
    "broadcast_state",
    "generator",
    "open_group",
    "pack",
    "shard",
    "unpack",
]
