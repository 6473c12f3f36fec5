"""Clients of an EtcdStore's run that share nothing with those that this process has."""

from datetime import timedelta

from torch.distributed import Store

from coxless.address import EtcdAddress
from coxless.stores.etcd import EtcdStore
from coxless.stores.etcd_cluster import Cluster, Deadline
from coxless.stores.etcd_session import Session


def new_session(address: EtcdAddress) -> Session:
    """As another process would begin one."""
    return Session(Cluster(address), Deadline(timedelta(seconds=30)))


def as_another_process(address: EtcdAddress) -> EtcdStore:
    """A store with a session of its own. To be closed."""
    store = EtcdStore.__new__(EtcdStore)
    Store.__init__(store)
    session = new_session(address)
    session.users += 1
    store._begin(address, session, timedelta(seconds=20))
    return store
