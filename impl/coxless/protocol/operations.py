"""What a protocol generator may ask of its driver: one store operation, or one question about time.

Each carries the name of the step that asks, as in docs/protocol.md. The driver sends the reply back into the generator, or throws
`ConnectionBroken` when it does not know whether the operation took effect.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

from ..records import Member


class Add(NamedTuple):
    """Reply: the new value (int)."""

    step: str
    key: str
    amount: int


class Barrier(NamedTuple):
    """Count this caller in and wait until `size` callers are. Reply: True when they were, False when the patience ran out; the
    caller stays counted either way, and so must never ask twice. One command of TCPStore (Store.barrier)."""

    step: str
    key: str
    size: int


class Set(NamedTuple):
    """No reply."""

    step: str
    key: str
    value: str


class Append(NamedTuple):
    """No reply."""

    step: str
    key: str
    value: str


class CompareSet(NamedTuple):
    """Reply (str): `desired` if the key held `expected` (or was missing and `expected` is ""), else the value it holds, or, when
    the key is missing, `expected` itself."""

    step: str
    key: str
    expected: str
    desired: str


class Read(NamedTuple):
    """Reply: the value (str), or None when the key is missing. Never blocks."""

    step: str
    key: str


class Wait(NamedTuple):
    """Reply: True when the key is there, False when the patience ran out."""

    step: str
    key: str


class Delete(NamedTuple):
    """No reply that anyone uses."""

    step: str
    key: str


class ReadHeartbeat(NamedTuple):
    """Reads the member's heartbeat. Reply: whether this observer now suspects it (bool)."""

    step: str
    member: Member


class JoinTimedOut(NamedTuple):
    """No store operation. Reply: whether founding has waited long enough for ranks that were never seen (bool)."""

    step: str


Operation = Add | Barrier | Set | Append | CompareSet | Read | Wait | Delete | ReadHeartbeat | JoinTimedOut


class ConnectionBroken(Exception):  # no RuntimeError: that is what a store's own timeouts are
    """Thrown into a generator: the operation may or may not have taken effect, and the store may have lost its data."""


Steps = Generator[Operation, Any, Any]
"""A protocol generator: yields operations, receives their replies, returns what its docstring says."""
