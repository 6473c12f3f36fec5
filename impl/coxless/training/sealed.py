"""What Gloo keeps in the store, with a seal around it.

Gloo takes the addresses of its peers from the store as they are: an empty value ends the process with a segmentation fault, others make
it ask for gigabytes. So each value carries a digest, and one without it never gets to Gloo. The digest is no secret: it tells what
participants wrote from everything else, not a participant from somebody who imitates one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store

from coxless.records import corrupt

_HEAD = b"c1 "
_DIGEST = 16
_LONGEST = 1 << 20


def seal(value: bytes) -> bytes:
    """The value as it lies in the store."""
    return _HEAD + hashlib.sha256(value).digest()[:_DIGEST] + value


def unseal(key: str, sealed: bytes) -> bytes:
    """The value again. Raises CorruptStoreError."""
    value = sealed[len(_HEAD) + _DIGEST :]
    if len(sealed) > _LONGEST or sealed != seal(value):
        raise corrupt(key, sealed, "the address of a participant")
    return value


class NamedPrefix(PrefixStore):  # type: ignore[misc]  # torch's types are not followed
    """A PrefixStore that can say its prefix, for messages."""

    def __init__(self, prefix: str, store: Store) -> None:
        super().__init__(prefix, store)
        self.prefix = prefix


class SealedStore(Store):  # type: ignore[misc]
    """`store` with every value sealed: what a Gloo group asks of a store, and no more.

    Torch's side does not keep this object alive: whoever makes a group with it has to, as long as the group lives.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._prefix = f"{store.prefix}/" if isinstance(store, NamedPrefix) else ""

    def set(self, key: str, value: str | bytes) -> None:
        self._store.set(key, seal(value.encode() if isinstance(value, str) else bytes(value)))

    def get(self, key: str) -> bytes:
        sealed = self._store.get(key)
        # A wait and then a look: of a key that was deleted between the two TCPStore says that it is empty. That is no foreign value: its
        # participant has gone on, and this meeting will not come about.
        if not sealed and not self._store.check([key]):
            raise RuntimeError(f"the address {self._prefix + key!r} was deleted: its participant has left this meeting")
        return unseal(self._prefix + key, sealed)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        self._store.wait(list(keys), *(() if timeout is None else (timeout,)))

    def check(self, keys: Sequence[str]) -> bool:
        there: bool = self._store.check(list(keys))
        return there

    def has_extended_api(self) -> bool:
        """No: then multi_get and append are done by get and set."""
        return False
