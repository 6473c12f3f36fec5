"""Names of the requests that ranks send, the same in every run: without nonces, and of the register what is not by chance."""

import re

from .wire import Request

_RECORD = re.compile(r"c1 [0-9a-f]+ ([0-9]+) \S+ [01] ([01]) \S+")
_NONCE = re.compile(r"[0-9a-f]{8,}")


def name_of(request: Request) -> str:
    """The operation, its key, and what compare_set compares and sets: of a record the iteration, and a ! if it calls for attention."""
    texts = [text.decode(errors="replace") for text in request.texts[: 3 if request.name == "compare_set" else 1]]
    return " ".join([request.name, *(_without_chance(text.removeprefix("/")) or "-" for text in texts)])


def _without_chance(text: str) -> str:
    record = _RECORD.fullmatch(text)
    if record is not None:
        return record[1] + "!" * int(record[2])
    return _NONCE.sub("*", text)
