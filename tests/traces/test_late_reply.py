"""The last to come to a barrier is let through at once in the model; in truth its reply may come when its patience has run out."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from coxless import keys
from coxless.server import start_server
from coxless_traces.validation import validate

from ..impl.crews import crew_of, in_threads


def test_the_last_to_come_whose_reply_is_late_is_admitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes the barrier for the others, does not know of it, and goes the slow path."""
    monkeypatch.setenv("COXLESS_TRACE", str(tmp_path))
    late: list[bool] = []

    def body(rank: int) -> None:
        with crew_of(server.address, rank, 2, patience=timedelta(seconds=0.5)) as crew:
            crew.advance()
            connection = crew._driver.connection
            arrive = connection.arrive

            def held_up(key: str, size: int, patience: timedelta) -> None:
                if rank == 1 and key == keys.count(2):
                    arrive(key, size, timedelta(seconds=30))
                    late.append(True)
                    raise dist.DistStoreError("as if the patience had run out before the reply came")
                arrive(key, size, patience)

            connection.arrive = held_up
            for number in range(1, 5):
                while rank == 1 and number == 2 and "0." not in (connection.peek(keys.arrived(2)) or ""):
                    pass  # until rank 0's patience has run out, else it might have been the last to come
                crew.advance()

    with start_server() as server:
        in_threads(2, body)
    assert late == [True]
    verdict = validate(tmp_path)
    assert verdict.holds, verdict
