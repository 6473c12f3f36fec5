"""Which transitions were replayed, in a file: a later replay takes only those that a change of the model has brought.

The file is gzip'd text: a line that says what it is, then a digest of each transition, in order. A digest is made of what the
states and the action are, not of their numbers or hashes: it is the same in every process.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from coxless_model.packed import LOCAL_BITS, Packed

from .edge_cover import Edge

TITLE = "coxless transitions, version 1"
_DIGEST = re.compile(r"[0-9a-f]{16}")


def digest(packed: Packed) -> Callable[[Edge], str]:
    """The digest of a transition, 16 hexadecimal digits. Of the values that states share each is gone through once."""

    @cache
    def shared(number: int) -> bytes:
        return _digest(repr(packed.shared(number)).encode())

    @cache
    def local(number: int) -> bytes:
        return _digest(repr(packed.locals[number]).encode())

    @lru_cache(maxsize=1 << 16)
    def state(key: int) -> bytes:
        ranks = (local(key >> (LOCAL_BITS * rank) & packed.local_mask) for rank in range(packed.ranks))
        return shared(key >> packed.shift) + b"".join(ranks)

    def of(edge: Edge) -> str:
        return _digest(state(edge.source), repr(edge.action).encode(), state(edge.target)).hex()

    return of


def _digest(*parts: bytes) -> bytes:
    digest: Any = blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return bytes(digest.digest())


def save(path: Path, digests: Iterable[str]) -> None:
    """Write the file; the same digests give the same bytes. Raises OSError."""
    text = "\n".join((TITLE, *sorted(set(digests)))) + "\n"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def read(path: Path) -> frozenset[str]:
    """The digests in a file. Raises ValueError, in one sentence, for one that `save` has not written so."""
    try:
        title, *digests = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a file of transitions ({error}); cover --save writes one") from None
    if title != TITLE:
        raise ValueError(f"{path}: does not begin with {TITLE!r}; cover --save writes such a file")
    for number, each in enumerate(digests, start=2):
        if not _DIGEST.fullmatch(each):
            raise ValueError(f"{path}, line {number}: {each[:40]!r} is no digest of 16 hexadecimal digits")
    return frozenset(digests)
