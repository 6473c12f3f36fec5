"""What clients of a TCPStore send it: enough of torch's wire protocol to tell one request from the next.

A request is one byte that says what is asked, and what belongs to it: texts with their length before them (64 bits, little-endian),
numbers, or a count of texts. Learned by looking (torch 2.13); `tests/traces/test_wire.py` holds it against the installed torch.
"""

import struct
from typing import NamedTuple

REQUESTS = {
    0: ("validate", "4"),
    1: ("set", "tt"),
    2: ("compare_set", "ttt"),
    3: ("get", "t"),
    4: ("add", "t8"),
    5: ("check", "*"),
    6: ("wait", "*"),
    7: ("num_keys", ""),
    8: ("delete_key", "t"),
    9: ("append", "tt"),
    10: ("multi_get", "*"),
    11: ("multi_set", "@"),
    12: ("cancel_wait", ""),
    13: ("ping", "4"),
    14: ("queue_push", "tt"),
    15: ("queue_pop", "t"),
    16: ("queue_len", "t"),
    17: ("list_keys", ""),
    18: ("barrier", "t8"),
}
"""Of each first byte the name, and what follows: t a text, * a count of texts, @ a count of pairs of texts, 4 and 8 so many bytes."""
NO_REPLY = frozenset({"validate", "set", "append", "multi_set", "queue_push"})
BLOCKING = frozenset({"wait", "barrier"})
LONGEST = 16 * 1024 * 1024
"""A text longer than this is none: the server itself takes 8 MiB."""


class UnknownRequest(Exception):
    """Bytes that are no request of this protocol."""


class Request(NamedTuple):
    name: str
    texts: tuple[bytes, ...]
    data: bytes

    @property
    def key(self) -> str:
        """The first text in it; "" when it has none."""
        return self.texts[0].decode(errors="replace").removeprefix("/") if self.texts else ""

    @property
    def is_blocking(self) -> bool:
        """Its reply may come much later, when others have done something."""
        return self.name in BLOCKING

    @property
    def has_reply(self) -> bool:
        return self.name not in NO_REPLY

    @property
    def has_long_reply(self) -> bool:
        """Longer than the one byte of which no half can be sent."""
        return self.has_reply and self.name not in (*BLOCKING, "check", "cancel_wait")

    def __str__(self) -> str:
        return f"{self.name} {self.key}".rstrip()


class Requests:
    """Cuts a stream of bytes into requests. Raises UnknownRequest."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Request]:
        """The requests that are complete with these bytes."""
        self._buffer += data
        complete = []
        while self._buffer and (request := _first(self._buffer)) is not None:
            complete.append(request)
            self._buffer = self._buffer[len(request.data) :]
        return complete


def _first(buffer: bytes) -> Request | None:
    """The request at the beginning of the buffer; None while it is not complete."""
    if buffer[0] not in REQUESTS:
        raise UnknownRequest(f"no request begins with {buffer[0]}: {buffer[:40]!r}")
    name, parts = REQUESTS[buffer[0]]
    position, found = 1, []
    for part in parts:
        if part in "48":
            position += int(part)
            continue
        texts = 1
        if part in "*@":
            if (count := _number(buffer, position)) is None:
                return None
            texts = count * (2 if part == "@" else 1)
            position += 8
        for _ in range(texts):
            if (length := _number(buffer, position)) is None:
                return None
            position += 8 + length
            found.append(buffer[position - length : position])
    return Request(name, tuple(found), buffer[:position]) if len(buffer) >= position else None


def _number(buffer: bytes, position: int) -> int | None:
    if len(buffer) < position + 8:
        return None
    number: int = struct.unpack_from("<Q", buffer, position)[0]
    if number > LONGEST:
        raise UnknownRequest(f"a length of {number}: {buffer[:40]!r}")
    return number
