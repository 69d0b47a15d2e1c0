"""Makes runs side by side in worker processes; every result is handed on as soon as its run ends."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from varrl_lightning.commands.user_errors import silence_lightning
from varrl_lightning.comparison.jobs import Job
from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.errors import StartError

_NUMBERS = re.compile(r"\[\n([\d\s.,e+-]+)\]")
"""A list of numbers only, as `json.dumps` formats it: an item a line."""
_THREADS = ("OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


def run_all(jobs: Sequence[Job], workers: int, threads: int, keep: Callable[[Job, dict[str, Any]], None]) -> None:
    """Make runs, and hand each result to `keep` in this process as soon as its run ends."""
    began = time.perf_counter()
    for done, (job, result) in enumerate(_results_of(jobs, workers, threads), start=1):
        keep(job, result)
        minutes_left = (time.perf_counter() - began) / done * (len(jobs) - done) / 60
        print(
            f"{job.run.name}: {result['wall_seconds']:.0f} s{_figure(result)}; {len(jobs) - done} to go, {minutes_left:.0f} min",
            flush=True,
        )


def check_made(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuse results that were made from something else."""
    differ = [name for name in {**wanted, **stored} if stored.get(name) != json.loads(json.dumps(wanted.get(name)))]
    if differ:
        raise StartError(
            f"{where} was made with another {', '.join(sorted(differ))} than requested now. Remove it to make it again, or give "
            "another --output."
        )


def write_json(path: Path, value: Any) -> None:
    """Write a file in one step; a list of numbers is one line of it."""
    text = _NUMBERS.sub(lambda numbers: "[" + " ".join(numbers[1].split()) + "]", json.dumps(value, indent=1))
    replace_text(path, text + "\n")


def _results_of(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yield each job with its result as it is done; with one worker, run them in this process."""
    if not jobs:
        return
    if workers == 1:
        with threads_of_processes(threads):
            for job in jobs:
                yield job, job.make()
        return
    with threads_of_processes(threads):
        pool = ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"), _begin, (threads,))
        futures = {pool.submit(Job.make, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        pool.shutdown()


def quiet() -> None:
    """Silence Lightning's messages at the beginning and end of each of many runs."""
    silence_lightning()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def threads_of_processes(count: int) -> Iterator[None]:
    """Give this process and those that it starts this many threads each, inside the `with` block."""
    before = {name: os.environ.get(name) for name in _THREADS}
    torch_before = torch.get_num_threads()
    os.environ |= dict.fromkeys(_THREADS, str(count))
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(torch_before)
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def _begin(threads: int) -> None:
    """Prepare a worker process."""
    torch.set_num_threads(threads)
    quiet()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_with_parent, args=(parent.join,), daemon=True).start()


def _exit_with_parent(wait: Callable[[], None]) -> None:
    """Exit when the parent has ended: a worker whose command was killed would wait for work for ever."""
    wait()
    os._exit(1)


def _figure(result: Mapping[str, Any]) -> str:
    if result["stopped"]:
        return " (stopped: not finite)"
    last: Mapping[str, float] = next((row["values"] for row in result["readings"] if row["split"] == "validation"), {})
    return "".join(f", {name.replace('_', ' ')} {last[name]:.3f}" for name in ("word_accuracy", "reward") if name in last)
