"""A training loop that hangs while the process and its heartbeat thread live: `stall_timeout` ends the heartbeats."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

import coxless
from coxless import Crew

STALL = timedelta(seconds=1)
OPTIONS: dict[str, Any] = {
    "world_size": 2,
    "heartbeat_interval": timedelta(milliseconds=100),
    "heartbeat_timeout": timedelta(seconds=2),
    "patience": timedelta(milliseconds=50),
    "timeout": timedelta(seconds=60),
}


def others(store: Any) -> tuple[threading.Thread, list[coxless.Iteration]]:
    """Rank 0, which goes on until rank 1 was left behind, and is back."""
    seen: list[coxless.Iteration] = []

    def body() -> None:
        with coxless.join(store, rank=0, **OPTIONS) as crew:
            for iteration in crew.iterations():
                seen.append(iteration)
                if iteration.world_size == 2 and any(one.world_size == 1 for one in seen):
                    return

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, seen


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_rank_whose_loop_hangs_is_left_behind_learns_it_and_rejoins(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="coxless.housekeeping")
    store = dist.HashStore()
    thread, seen = others(store)
    with coxless.join(store, rank=1, stall_timeout=STALL, **OPTIONS) as crew:
        crew.advance()
        before = crew.advance()
        until(lambda: seen[-1].world_size == 1)  # it hangs, and calls nothing
        back = crew.advance()
        assert back.rejoined
        assert not back.holds
        assert back.number > before.number + 1
        thread.join(60)
        assert not thread.is_alive()
        until(lambda: "heartbeats again" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.name == "coxless.housekeeping"]
    assert [" ".join(line.split()[:8]) for line in lines] == [
        f"the training loop of {before.me} has not called",
        f"the training loop of {before.me} goes on: heartbeats",
    ]


SIGNS: dict[str, Callable[[Crew], object]] = {
    "send_heartbeat": lambda crew: crew.send_heartbeat(),
    "trouble": lambda crew: crew.trouble(),
    "vote": lambda crew: crew.vote(True),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_a_loop_that_gives_signs_of_life_does_not_hang(sign: str) -> None:
    with coxless.join(dist.HashStore(), rank=0, stall_timeout=timedelta(hours=1), **{**OPTIONS, "world_size": 1}) as crew:
        crew.advance()
        crew._housekeeper.alive_at = began = time.monotonic() - 3599
        SIGNS[sign](crew)
        assert crew._housekeeper.alive_at > began + 3000


def test_waiting_for_the_others_is_no_hanging(caplog: pytest.LogCaptureFixture) -> None:
    """Founding waits for a rank that never comes, for longer than the stall timeout; then the loop goes on."""
    with coxless.join(
        dist.HashStore(), rank=0, stall_timeout=timedelta(seconds=0.5), join_timeout=timedelta(seconds=2), **OPTIONS
    ) as crew:
        assert crew.advance().world_size == 1
    assert "stall_timeout" not in caplog.text


def test_a_stall_timeout_that_a_healthy_loop_could_not_keep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"heartbeat_interval \(0:00:05\) must be shorter than stall_timeout \(0:00:05\)"):
        coxless.join(dist.HashStore(), rank=0, world_size=1, stall_timeout=timedelta(seconds=5))
    with pytest.raises(TypeError, match=r"stall_timeout must be a datetime.timedelta, not 60"):
        coxless.join(dist.HashStore(), rank=0, world_size=1, stall_timeout=60)  # type: ignore[arg-type]
