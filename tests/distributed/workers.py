"""Processes that stay for a whole test session and do what they are told together, so that each start is paid for once.

All are forks of one server, which has imported the package. A job is a function of the tests, named `module:function`, which every
process calls with the same arguments.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Environment = Callable[[int, int, int], Mapping[str, object]]
"""The environment variables that tell a process of its group, from its rank, the number of processes and a free port."""


class WorkerError(RuntimeError):
    """A worker raised; the message holds every rank's traceback."""


def torchrun(rank: int, world_size: int, port: int) -> Mapping[str, object]:
    """What torchrun sets on one node."""
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "GROUP_RANK": 0}
    settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests", "NODE_RANK": 0}
    return settings if world_size > 1 else {}


class Workers:
    """`world_size` processes that form one process group.

    Args:
        timeout: seconds that a job may take before all are killed.
        environment: how each is told its rank.
    """

    def __init__(self, world_size: int, timeout: float = 240.0, environment: Environment = torchrun) -> None:
        self.world_size, self.timeout, self.environment = world_size, timeout, environment
        self._processes: list[ForkServerProcess] = []
        self._lines: list[Connection] = []

    def __call__(self, job: str, **arguments: Any) -> list[Any]:
        """What each rank returned.

        Raises:
            WorkerError: when one raised, ended or took too long.
        """
        results = self.outcomes(job, **arguments)
        errors = [f"rank {rank}:\n{error}" for rank, (_, error) in enumerate(results) if error]
        if errors:
            raise WorkerError("\n".join(errors))
        return [value for value, _ in results]

    def outcomes(self, job: str, **arguments: Any) -> list[tuple[Any, str | None]]:
        """(what it returned, the traceback of what it raised) of each rank."""
        if not self._processes:
            self._start()
        try:
            for line in self._lines:
                line.send_bytes(pickle.dumps((job, arguments)))
            results = [self._answer(rank) for rank in range(self.world_size)]
        except BaseException:
            self.stop()  # a process that failed half-way leaves the others in a collective call
            raise
        if any(error for _, error in results):
            self.stop()  # nor is it known what a job has left that did not come to its end
        return results

    def stop(self) -> None:
        """End all processes."""
        for process, line in zip(self._processes, self._lines, strict=True):
            process.kill()
            process.join()
            process.close()
            line.close()
        self._processes, self._lines = [], []

    def _answer(self, rank: int) -> tuple[Any, str | None]:
        if not self._lines[rank].poll(self.timeout):
            raise WorkerError(f"rank {rank} of {self.world_size} gave no answer in {self.timeout:g} s")
        try:
            value, error = pickle.loads(self._lines[rank].recv_bytes())
        except EOFError:
            raise WorkerError(f"rank {rank} of {self.world_size} ended") from None
        return value, error

    def _start(self) -> None:
        context = _server()
        port = free_port()
        for rank in range(self.world_size):
            here, there = context.Pipe()
            settings = {name: str(value) for name, value in self.environment(rank, self.world_size, port).items()}
            process = context.Process(target=work, args=(there, settings), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._lines.append(here)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _server() -> Any:
    """The server whose forks the workers are; it keeps the environment that it is begun with."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    former = {name: os.environ.get(name) for name in settings}
    context.set_forkserver_preload(["pytest", "tests.distributed.jobs"])
    os.environ.update(settings)
    try:
        forkserver.ensure_running()
    finally:
        restore(former)
    return context


def restore(environment: Mapping[str, str | None]) -> None:
    """Give these variables the values, or none, that they had."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def work(line: Connection, settings: Mapping[str, str]) -> None:
    """Do jobs until the other side has gone."""
    os.chdir(ROOT)
    os.environ.update(settings)
    while True:
        try:
            job, arguments = pickle.loads(line.recv_bytes())
        except EOFError:
            return
        module, _, function = job.partition(":")
        answer: tuple[Any, str | None]
        with _as_it_was():
            try:
                answer = getattr(importlib.import_module(module), function)(**arguments), None
            except BaseException:  # SystemExit as well: it is what a stopped run raises
                answer = None, traceback.format_exc()
        line.send_bytes(pickle.dumps(answer))


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """What a job changes of its process is not there for the next; the process group and what DeepSpeed changes are."""
    environment, folder = dict(os.environ), Path.cwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        restore(dict.fromkeys(os.environ) | environment)
        os.chdir(folder)
        for number, handler in handlers.items():
            signal.signal(number, handler)
