"""Real etcd clusters for whichever test asks for one; skipped, with the reason, where the program is not installed.

Hypothesis is the same in every run, unless `--hypothesis-profile long` asks for more.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from torch.distributed import TCPStore

from coxless_model.stateful import PROFILES

if TYPE_CHECKING:
    from coxless.stores.local_etcd import LocalEtcd

for name, profile in PROFILES.items():
    settings.register_profile(name, profile)
settings.load_profile("ci")

NewRun = Callable[..., str]
NO_ETCD = "etcd is not installed: apt-get install etcd-server, or name the program in COXLESS_ETCD"
_runs = count()


def running_etcd(members: int) -> "Iterator[LocalEtcd]":
    from coxless.stores.local_etcd import LocalEtcd, find_etcd

    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    with LocalEtcd(members) as cluster:
        yield cluster


def needs_etcd() -> pytest.MarkDecorator:
    """For a test that starts an etcd otherwise than by a fixture of this file."""
    from coxless.stores.local_etcd import find_etcd

    return pytest.mark.skipif(find_etcd() is None, reason=NO_ETCD)


NO_BARRIER = "this torch's TCPStore has no barrier"
needs_native_barrier = pytest.mark.skipif(not hasattr(TCPStore, "barrier"), reason=NO_BARRIER)
"""For what is known of the command itself; the library does without (tests/traces/test_without_native_barrier.py)."""


@pytest.fixture(scope="session")
def etcd() -> "Iterator[LocalEtcd]":
    """One member, for tests that do it no harm."""
    yield from running_etcd(1)


@pytest.fixture
def etcd3() -> "Iterator[LocalEtcd]":
    """Three members, for this test alone."""
    yield from running_etcd(3)


@pytest.fixture
def new_run(etcd: "LocalEtcd") -> NewRun:
    """Addresses of runs of this test's own on the one member."""
    return lambda options="": etcd.address(f"run-{next(_runs)}", options)
