"""Stores of our own, and what the rest of the library asks of any store without importing them."""

import sys
from typing import TYPE_CHECKING

from torch.distributed import PrefixStore, Store

if TYPE_CHECKING:
    from .etcd import EtcdStore


def base_of(store: Store) -> Store:
    """The store under the prefixes."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return store


def as_etcd(store: Store) -> "EtcdStore | None":
    """The EtcdStore below every PrefixStore, None for another kind of store. Imports nothing: where the module is not loaded there is none."""
    module = sys.modules.get(f"{__name__}.etcd")
    base = base_of(store)
    return base if module is not None and isinstance(base, module.EtcdStore) else None


def let_go(store: Store) -> None:
    """Close a client that nobody else uses. TCPStore's closes itself when nothing refers to it any more."""
    if etcd := as_etcd(store):
        etcd.close()
