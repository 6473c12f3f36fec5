"""Which samples a participant trains on: a function of the data position, never of what happened before."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """A random generator that depends only on its arguments: the same on every rank, in every process, at every retry.

    For dropout or augmentation give the data position and the participant's index as parts.
    """
    name = repr((seed, *parts)).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1)


def batch_at(position: int, *, samples: int, batch_size: int, seed: int = 0) -> Tensor:
    """The sample numbers of the batch at a data position.

    The batches cut one endless stream: a random order of all `samples`, then another one, and so on. A batch may span two of
    them, so that every pass uses every sample exactly once, whatever the batch size.
    """
    if position < 0 or samples < 1 or batch_size < 1:
        raise ValueError(f"position {position}, samples {samples} and batch_size {batch_size} do not describe a batch")
    first, end = position * batch_size, (position + 1) * batch_size
    parts = []
    while first < end:
        number, offset = divmod(first, samples)
        part = _order(seed, number, samples)[offset : offset + end - first]
        parts.append(part)
        first += len(part)
    return torch.cat(parts)


def shard(batch: Tensor, index: int, size: int) -> Tensor:
    """The consecutive part of `batch` for participant `index` of `size`; their lengths differ by at most one and may be 0."""
    if not 0 <= index < size:
        raise ValueError(f"index {index} is not within 0..{size - 1}")
    return batch.tensor_split(size)[index]


@lru_cache(maxsize=2)
def _order(seed: int, number: int, samples: int) -> Tensor:
    return torch.randperm(samples, generator=generator(seed, "pass", number))
