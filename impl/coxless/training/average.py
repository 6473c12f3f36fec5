"""Averaging over the participants: gradients by weight, and what else a forward pass changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from coxless.training.groups import EpochGroup

BUCKET_BYTES = 8 << 20


def average_gradients(
    group: EpochGroup,
    parameters: Iterable[Tensor],
    weight: float,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    on_bucket: Callable[[int], None] | None = None,
) -> None:
    """Replaces every gradient by the mean over the participants, weighted by `weight`: sum(w·g) / sum(w).

    With the number of samples of the shard as weight and the mean loss over the shard, that is the gradient of the whole batch,
    up to rounding. The result has the same bits on all participants. A gradient that a participant lacks counts as zero; one that
    all lack stays absent, so that the optimizer skips it as it would in a single process. A participant of weight 0 contributes
    nothing, whatever its gradients hold. `on_bucket` is called with a number before each exchange.

    Raises ValueError for a bad weight, or when all weights are 0; `CollectiveFailed` when a participant is gone. After that the
    gradients are a mixture and must be dropped.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight {weight} is not a finite number of 0 or more")
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    # The weights go first: scaling before the sum keeps half precision from overflowing.
    header = torch.tensor([weight, *(float(weight > 0 and p.grad is not None) for p in trained)], dtype=torch.float64)
    header = header.to(trained[0].device)
    group.all_reduce(header)
    total, *present = header.tolist()
    if total == 0:
        raise ValueError("no participant has any samples: all weights are 0")
    shared = [p for p, anyone in zip(trained, present, strict=True) if anyone]
    for parameter, anyone in zip(trained, present, strict=True):
        if not anyone:
            parameter.grad = None
    for number, bucket in enumerate(buckets(shared, bucket_bytes)):
        if on_bucket is not None:
            on_bucket(number)
        if weight > 0:
            parts = [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.detach().reshape(-1) for p in bucket]
            flat = torch.cat(parts).mul_(weight / total)
        else:
            flat = torch.zeros(sum(p.numel() for p in bucket), dtype=bucket[0].dtype, device=bucket[0].device)
        group.all_reduce(flat)
        for parameter, mean in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
            parameter.grad = mean.view_as(parameter).clone()


def average_buffers(group: EpochGroup, buffers: Iterable[Tensor], *, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Makes the buffers of a model the same everywhere: floating ones become their mean, others participant 0's.

    Every participant counts alike. Raises `CollectiveFailed`; the buffers are a mixture then and must be put back.
    """
    for bucket in buckets(list(buffers), bucket_bytes):
        if bucket[0].is_floating_point():
            flat = torch.cat([b.reshape(-1) for b in bucket]).div_(group.size)
            group.all_reduce(flat)
        else:
            flat = torch.cat([b.reshape(-1).to(torch.int64) for b in bucket])
            group.broadcast(flat, 0)
        for buffer, value in zip(bucket, torch.split(flat, [b.numel() for b in bucket]), strict=True):
            buffer.copy_(value.view_as(buffer))


def buckets(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type and device, together at most `limit` bytes (or a single one that is larger)."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if bucket and (size + bytes_ > limit or tensor.dtype != bucket[0].dtype or tensor.device != bucket[0].device):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += bytes_
    if bucket:
        yield bucket
