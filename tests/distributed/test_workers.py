"""Workers that all files share: a job finds its process as every other job does, and one that fails takes nobody with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.distributed.workers import ROOT, WorkerError, Workers


@pytest.fixture(scope="module")
def one() -> Iterator[Workers]:
    workers = Workers(1)
    yield workers
    workers.stop()


def test_a_job_leaves_nothing_of_its_own(one: Workers) -> None:
    before = one("os:getpid")
    one("os:chdir", path="/")
    assert one("os:getcwd") == [str(ROOT)]
    one("signal:signal", signalnum=signal.SIGTERM, handler=signal.SIG_IGN)
    assert one("signal:getsignal", signalnum=signal.SIGTERM) == [signal.SIG_DFL]
    one("warnings:simplefilter", action="error")
    one("warnings:warn", message="said, and no error")
    one("lightning.fabric:seed_everything", seed=3, verbose=False)
    assert one("os:getenv", key="PL_GLOBAL_SEED") == [None]
    assert one("os:getpid") == before


def test_processes_whose_job_raised_or_that_ended_are_replaced(one: Workers) -> None:
    pid = one("os:getpid")
    with pytest.raises(WorkerError, match=r"rank 0:\n(.*\n)*FileNotFoundError"):
        one("os:remove", path="/nothing/there")
    assert one("os:getpid") != pid
    with pytest.raises(WorkerError, match="rank 0 of 1 ended"):
        one("os:_exit", status=3)
    assert len(one("os:getpid")) == 1
