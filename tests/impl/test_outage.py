"""What the log says of a store that is away, and whose silence it is."""

import logging
import time

import pytest
import torch.distributed as dist

from coxless.connection import Connection
from coxless.outage import Outage
from coxless.records import Member
from coxless.suspicion import HeartbeatObserver


def test_an_outage_is_two_lines_whatever_number_of_connections_notice_it(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    asked = time.monotonic()
    for _ in range(3):
        outage.noticed("host:1", asked, "no answer for 2.6 s")
    for _ in range(3):
        outage.over("host:1")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "the store at host:1 is away (no answer for 2.6 s): waiting for it"
    assert lines[1].startswith("the store at host:1 is back, after ")
    assert len(lines) == 2


def test_a_connection_that_notices_late_does_not_announce_an_outage_that_is_over(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    asked = time.monotonic()
    outage.noticed("host:1", asked, "connection refused")
    outage.over("host:1")
    outage.noticed("host:1", asked, "no answer")
    assert len(caplog.records) == 2
    outage.noticed("host:1", time.monotonic() + 1, "connection refused")
    assert len(caplog.records) == 3, "another one"


def test_connections_of_no_interest_are_quiet(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(logging.DEBUG)
    outage.noticed("host:1", time.monotonic(), "connection refused")
    outage.over("host:1")
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_the_time_in_which_the_connection_was_lost_is_nobodys_silence() -> None:
    observer = HeartbeatObserver(timeout=3.0, longest_gap=1.5)
    other = Member(1, 1, "x")
    assert not observer.observe(other, "1 5 0", 0.0)
    assert not observer.observe(other, "1 5 0", 1.4)
    observer.look_away()
    assert not observer.observe(other, "1 5 0", 60.0)
    assert observer.silence(other) == 1.4
    assert not observer.observe(other, "1 5 0", 61.0)
    assert observer.observe(other, "1 5 0", 62.0), "silent for as long as it could be looked at"


def test_a_call_that_its_deadline_ends_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    connection = Connection(dist.HashStore())
    connection.shut_down(0.2)
    connection.shut_down()
    assert not caplog.records
    connection.shut_down(2.6)
    assert [record.getMessage() for record in caplog.records] == [
        "the store at HashStore is away (no answer for 2.6 s): waiting for it"
    ]
