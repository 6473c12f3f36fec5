"""Moving the training state over a process group, as plain numbers.

The state is a tree of dictionaries, lists, tuples, numbers, strings and tensors, which is what `state_dict()` gives. Its shape
travels as JSON and its tensors as bytes: nothing is unpickled, so a peer can send wrong numbers but no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coxless.training.average import buckets
from coxless.training.groups import EpochGroup

CHUNK_BYTES = 32 << 20
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


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
    """Puts a tree together again. Raises ValueError when the shape is none, or does not go with the tensors."""
    left = iter(tensors)

    def build(node: Any) -> Any:
        match node:
            case None | bool() | int() | float() | str():
                return node
            case list():
                return [build(item) for item in node]
            case {"tensor": [_name, *_sizes]}:
                return next(left)
            case {"dict": list(items)}:
                return {build(key): build(value) for key, value in items}
            case {"tuple": list(items)}:
                return tuple(build(item) for item in items)
        raise ValueError(f"not the shape of a state: {node!r:.80}")

    try:
        return build(json.loads(shape))
    except StopIteration:
        raise ValueError("the shape of the state names more tensors than came") from None


def broadcast_state(group: EpochGroup, tree: object, source: int, *, device: torch.device | str = "cpu") -> Any:
    """Sends the state of participant `source` to all, and returns it; `tree` matters only there.

    The received tensors are new and lie on `device`, which must suit the backend; nothing of the receiver is touched. So a
    transfer that fails half way (`CollectiveFailed`) leaves it as it was. TypeError, at the source and before anything is sent,
    when `tree` holds something that `pack` cannot take.
    """
    sending = group.index == source
    shape, tensors = pack(tree) if sending else ("", [])
    text = torch.frombuffer(bytearray(shape.encode() or b" "), dtype=torch.uint8).to(device)
    length = torch.tensor([text.numel()], dtype=torch.int64, device=device)
    group.broadcast(length, source)
    if not sending:
        text = torch.empty(int(length.item()), dtype=torch.uint8, device=device)
    group.broadcast(text, source)
    if not sending:
        shape = bytes(text.cpu().tolist()).decode()
        tensors = _empty_tensors(json.loads(shape), device)
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


def _empty_tensors(shape: Any, device: torch.device | str) -> list[Tensor]:
    found: list[Tensor] = []

    def walk(node: Any) -> None:
        match node:
            case {"tensor": [name, *sizes]}:
                found.append(torch.empty(sizes, dtype=_DTYPES[name], device=device))
            case dict():
                for value in node.values():
                    walk(value)
            case list():
                for item in node:
                    walk(item)

    walk(shape)
    return found
