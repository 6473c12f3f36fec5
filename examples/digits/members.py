"""An etcd of three members for the run, some of which are killed while ranks are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coxless.stores.local_etcd import LocalEtcd

MEMBERS = 3
LEADER, OTHER = "the leader", "another member"
# At which part of the updates, and who; a member is back after some seconds, and there are always two left.
DEATHS = ((0.08, LEADER), (0.3, OTHER), (0.6, LEADER))
AWAY = 3.0  # seconds


class Deaths:
    """Kills members as the run gets on, and starts them again."""

    def __init__(self, cluster: LocalEtcd, steps: int, tell: Callable[[str], None]) -> None:
        self.address = cluster.address("digits")
        self.done: list[str] = []
        self._cluster = cluster
        self._due = [(int(part * steps), who) for part, who in DEATHS]
        self._away: tuple[int, float] | None = None
        self._tell = tell

    def look(self, updates: int) -> None:
        """Does what is due after so many updates. Never waits."""
        if self._away is not None:
            number, until = self._away
            if time.monotonic() < until:
                return
            self._cluster.start_member(number)
            self._away = None
            self._tell(f"member {number} of etcd [green]is started again[/]")
        elif self._due and updates >= self._due[0][0]:
            leader = self._cluster.leader()
            if leader is None:  # between two
                return
            _, who = self._due.pop(0)
            number = leader if who == LEADER else (leader + 1) % MEMBERS
            self._cluster.kill(number)
            self._away = number, time.monotonic() + AWAY
            self.done.append(f"{who} after update {updates}")
            self._tell(f"member {number} of etcd, {who}, [red]is killed[/]")

    @property
    def all_done(self) -> bool:
        return not self._due


@contextmanager
def etcd(steps: int, tell: Callable[[str], None]) -> Iterator[Deaths]:
    """A running cluster. Raises CoxlessError where etcd is not installed."""
    from coxless.stores.local_etcd import LocalEtcd

    with LocalEtcd(MEMBERS) as cluster:
        yield Deaths(cluster, steps, tell)
