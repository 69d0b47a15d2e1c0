"""Processes that stay for a whole test session and do what they are told together, so that each start is paid for once.

    python -m tests.distributed.workers RANK WORLD_SIZE PORT     is one of them; it reads jobs and writes answers as pickles.

A job is a function of the tests, named `module:function`, which every process calls with the same arguments.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).parents[2]


class WorkerError(RuntimeError):
    """A worker raised; the message holds every rank's traceback."""


class Workers:
    """`world_size` processes that form one process group.

    Args:
        timeout: seconds that a job may take before all are killed.
    """

    def __init__(self, world_size: int, timeout: float = 240.0) -> None:
        self.world_size, self.timeout = world_size, timeout
        self._processes: list[subprocess.Popen[bytes]] = []
        self._answers: list[queue.Queue[Any]] = []

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
            for process in self._processes:
                assert process.stdin is not None
                pickle.dump((job, arguments), process.stdin)
                process.stdin.flush()
            return [self._answer(rank) for rank in range(self.world_size)]
        except BaseException:
            self.stop()  # a process that failed half-way leaves the others in a collective call
            raise

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
        self._processes, self._answers = [], []

    def _answer(self, rank: int) -> tuple[Any, str | None]:
        try:
            answer = self._answers[rank].get(timeout=self.timeout)
        except queue.Empty:
            raise WorkerError(f"rank {rank} of {self.world_size} gave no answer in {self.timeout:g} s") from None
        if answer is None:
            raise WorkerError(f"rank {rank} of {self.world_size} ended")
        value, error = answer
        return value, error

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(self.world_size):
            command = [sys.executable, "-m", "tests.distributed.workers", str(rank), str(self.world_size), str(port)]
            path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
            assert process.stdout is not None
            answers: queue.Queue[Any] = queue.Queue()
            threading.Thread(target=_listen, args=(process.stdout, answers), daemon=True).start()
            self._processes.append(process)
            self._answers.append(answers)


def _listen(stream: BinaryIO, answers: queue.Queue[Any]) -> None:
    """Put each answer into the queue, None at the end."""
    try:
        while True:
            answers.put(pickle.load(stream))
    except (EOFError, OSError, ValueError, pickle.UnpicklingError):
        answers.put(None)


def main(rank: int, world_size: int, port: int) -> None:
    """Do jobs until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed goes to stderr
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "GROUP_RANK": 0}
    settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests", "NODE_RANK": 0}
    if world_size > 1:
        os.environ.update({name: str(value) for name, value in settings.items()})
    while True:
        try:
            job, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        module, _, function = job.partition(":")
        answer: tuple[Any, str | None]
        try:
            answer = getattr(importlib.import_module(module), function)(**arguments), None
        except BaseException:  # SystemExit as well: it is what a stopped run raises
            answer = None, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
