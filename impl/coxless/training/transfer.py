"""Moving the training state over a process group, as plain numbers.

The state is a tree of dictionaries, lists, tuples, numbers, strings and tensors, which is what `state_dict()` gives. Its shape
travels as JSON and its tensors as bytes: nothing is unpickled, so a peer can send wrong numbers but no code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coxless.errors import CoxlessError
from coxless.training.average import buckets
from coxless.training.groups import EpochGroup

CHUNK_BYTES = 32 << 20
LONGEST_SHAPE = 64 << 20
"""Bytes of JSON."""
LARGEST_STATE = 1 << 42
"""Bytes of tensors."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


class CorruptStateError(CoxlessError, ValueError):
    """What a participant sent as the state of the training is none."""


def pack(tree: object) -> tuple[str, list[Tensor]]:
    """Takes `tree` apart: its shape as JSON, and its tensors. Raises TypeError for anything else in it."""
    tensors: list[Tensor] = []

    def describe(node: object) -> object:
        match node:
            case None | bool() | int() | float() | str():
                return node
            case Tensor():
                name = str(node.dtype).removeprefix("torch.")
                if name not in _DTYPES or node.layout is not torch.strided:
                    raise TypeError(f"a {node.layout} tensor of {name} cannot be sent")
                tensors.append(node.detach())
                return {"tensor": [name, *node.shape]}
            case Mapping():
                return {"dict": [[describe(key), describe(value)] for key, value in node.items()]}
            case tuple():
                return {"tuple": [describe(item) for item in node]}
            case list():
                return [describe(item) for item in node]
        raise TypeError(
            f"a {type(node).__name__} cannot be sent; state is made of dictionaries, lists, numbers, strings and tensors"
        )

    return json.dumps(describe(tree)), tensors


def unpack(shape: str, tensors: list[Tensor]) -> Any:
    """Puts a tree together again. Raises CorruptStateError when the shape is none, or does not go with the tensors."""
    left = iter(tensors)

    def build(node: Any) -> Any:
        match node:
            case None | bool() | int() | float() | str():
                return node
            case list():
                return [build(item) for item in node]
            case {"tensor": [_name, *_sizes], **rest} if not rest:
                return next(left)
            case {"dict": list(items), **rest} if not rest:
                return {build(key): build(value) for key, value in map(_pair, items)}
            case {"tuple": list(items), **rest} if not rest:
                return tuple(build(item) for item in items)
        raise _no_state(node)

    try:
        tree = build(_parsed(shape))
    except StopIteration:
        raise CorruptStateError("the shape of the state names more tensors than came") from None
    except (RecursionError, TypeError) as error:  # too deep; a key that cannot be one
        raise CorruptStateError(f"not the shape of a state: {error}") from None
    if next(left, None) is not None:
        raise CorruptStateError("the shape of the state names fewer tensors than came")
    return tree


def broadcast_state(group: EpochGroup, tree: object, source: int, *, device: torch.device | str = "cpu") -> Any:
    """Sends the state of participant `source` to all, and returns it; `tree` matters only there.

    The received tensors are new and lie on `device`, which must suit the backend; nothing of the receiver is touched. So a
    transfer that fails half way (`CollectiveFailed`, or `CorruptStateError` for something that is no state) leaves it as it was. TypeError,
    at the source and before anything is sent, when `tree` holds something that `pack` cannot take.
    """
    sending = group.index == source
    shape, tensors = pack(tree) if sending else ("", [])
    text = torch.frombuffer(bytearray(shape.encode() or b" "), dtype=torch.uint8).to(device)
    length = torch.tensor([text.numel()], dtype=torch.int64, device=device)
    group.broadcast(length, source)
    if not sending:
        announced = int(length.item())
        if not 0 < announced <= LONGEST_SHAPE:
            raise CorruptStateError(f"the state is announced with {announced} bytes of shape; 1 to {LONGEST_SHAPE} can be")
        text = torch.empty(announced, dtype=torch.uint8, device=device)
    group.broadcast(text, source)
    if not sending:
        shape = bytes(text.cpu().tolist()).decode(errors="replace")
        tensors = [torch.empty(sizes, dtype=dtype, device=device) for dtype, sizes in tensors_of(shape)]
    for bucket in buckets(tensors, CHUNK_BYTES):
        flat = torch.cat([_bytes(tensor.to(device)) for tensor in bucket])
        group.broadcast(flat, source)
        if not sending:
            for tensor, part in zip(bucket, torch.split(flat, [t.numel() * t.element_size() for t in bucket]), strict=True):
                _bytes(tensor).copy_(part)
    return tree if sending else unpack(shape, tensors)


def _bytes(tensor: Tensor) -> Tensor:
    """The contents of a tensor as bytes; a view if it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def tensors_of(shape: str) -> list[tuple[torch.dtype, list[int]]]:
    """Type and sizes of each tensor that a shape names. Raises CorruptStateError."""
    found: list[tuple[torch.dtype, list[int]]] = []
    room = LARGEST_STATE

    def walk(node: Any) -> None:
        nonlocal room
        match node:
            case {"tensor": [str(name), *sizes]}:
                dtype = _DTYPES.get(name)
                if (
                    dtype is None
                    or len(sizes) > 64
                    or not all(type(size) is int and 0 <= size <= LARGEST_STATE for size in sizes)
                ):
                    raise _no_state(node)
                room -= math.prod(sizes) * dtype.itemsize
                if room < 0:
                    raise CorruptStateError(f"the shape of the state names tensors of more than {LARGEST_STATE} bytes")
                found.append((dtype, sizes))
            case {"tensor": _}:
                raise _no_state(node)
            case dict():
                for value in node.values():
                    walk(value)
            case list():
                for item in node:
                    walk(item)

    try:
        walk(_parsed(shape))
    except RecursionError:
        raise CorruptStateError("not the shape of a state: too deep") from None
    return found


def _parsed(shape: str) -> Any:
    try:
        return json.loads(shape)
    except (ValueError, RecursionError):
        raise _no_state(shape) from None


def _pair(item: Any) -> tuple[Any, Any]:
    if type(item) is not list or len(item) != 2:
        raise _no_state(item)
    return item[0], item[1]


def _no_state(node: object) -> CorruptStateError:
    return CorruptStateError(f"not the shape of a state: {node!a:.80}")
