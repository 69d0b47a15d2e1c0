"""Saves checkpoints completely or not at all, under every strategy.

`last.ckpt` is a file, or a link to a folder where the strategy shards its checkpoints. A new one is written beside it as `.last.1`,
`.last.2`, ..., flushed to the disk, and renamed in one step: a process that is killed at any time leaves the former checkpoint or
the new one. The next save removes what killed saves have left.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import lightning as L

from varrl_lightning.configuration.atomic_write import flush
from varrl_lightning.errors import RankError, SaveError
from varrl_lightning.strategies import Parallel, parallel_of
from varrl_lightning.strategies.write_checkpoint import write_checkpoint

T = TypeVar("T")
EARLIER = ".earlier"
"""Suffix of a checkpoint that is no longer a run's own; version 0.2 gave it to those of earlier runs."""
_TORCH_COULD_NOT_WRITE = ("inline_container", "iostream error", "write():", "PytorchStreamWriter")


def save_whole(trainer: L.Trainer, path: Path) -> None:
    """Save the Trainer's state under a name; called on every process.

    Raises:
        SaveError: when a process cannot write: a full disk, a quota, missing rights; names the free and the needed bytes.
        RankError: when a process failed for another reason.
    """
    parallel = parallel_of(trainer)
    room = _DiskReport(path)
    first = parallel.rank == 0
    try:
        part = next(name for name in _run_together(parallel, lambda: _free_name(path) if first else None, room) if name)
        _run_together(parallel, lambda: write_checkpoint(trainer, part), room)
        _run_together(parallel, lambda: _flush_all(part), room)
        _run_together(parallel, lambda: _publish(part, path) if first else None, room)
    except BaseException:
        if first:
            remove_leftovers(path)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove what killed saves of a checkpoint have left beside it."""
    linked = {link.resolve() for link in path.parent.glob(f"{path.name}*") if link.is_symlink()}
    for leftover in _parts(path):
        if leftover.resolve() not in linked or leftover.is_symlink():
            _remove(leftover)


# --- names --------------------------------------------------------------------------------------------------------------------


def _rename_aside(path: Path) -> None:
    names = (path.with_name(path.name + EARLIER + (f".{n}" if n > 1 else "")) for n in count(1))
    os.replace(path, next(name for name in names if not (name.is_symlink() or name.exists())))


def _parts(path: Path) -> list[Path]:
    """The hidden files of `last.ckpt`: `.last.7`, and `.last.7.link` or `.last.7.part`, which become it."""
    pattern = re.compile(rf"\.{re.escape(path.stem)}\.\d+(\.(link|part))?")
    return [p for p in path.parent.iterdir() if pattern.fullmatch(p.name)] if path.parent.is_dir() else []


def _free_name(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    taken = [int(p.name.removeprefix(f".{path.stem}.").split(".")[0]) for p in _parts(path)]
    return path.with_name(f".{path.stem}.{max(taken, default=0) + 1}")


# --- the disk -----------------------------------------------------------------------------------------------------------------


def _flush_all(path: Path) -> None:
    """Flush a checkpoint and all files in its folder to the disk; called on every process, since each may be on another machine."""
    if path.is_dir():
        for part in path.rglob("*"):
            flush(part)
    if path.exists():
        flush(path)


def _publish(part: Path, path: Path) -> None:
    """Give the new checkpoint its name, in one step; remove the former."""
    if path.is_dir() and not path.is_symlink():  # in a copied run, where links were followed
        _rename_aside(path)
    if part.is_dir():
        link = part.with_name(part.name + ".link")
        link.symlink_to(part.name)
        os.replace(link, path)
    else:
        os.replace(part, path)
    with suppress(OSError):  # the checkpoint is saved; some network folders refuse this tidying
        flush(path.parent)
        remove_leftovers(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path] if path.is_file() else []
    return sum(p.stat().st_size for p in files)


# --- when it fails ------------------------------------------------------------------------------------------------------------


@dataclass
class _Problem:
    """An error on one process; `written` bytes of the new checkpoint existed by then."""

    text: str
    disk: bool
    host: str
    written: int = 0
    free: int = 0


class _DiskReport:
    """Describes failed saves of a checkpoint, with the free space on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def problem(self, error: Exception) -> _Problem:
        """Describe an error, before the unfinished checkpoint is removed."""
        reason = _disk_reason(error)
        text = reason or f"{type(error).__name__}: {error}"
        problem = _Problem(text, reason is not None, socket.gethostname())
        with suppress(OSError):  # the report may lack sizes, but the error must be raised
            problem.written = max(map(_size, _parts(self.path)), default=0)
            existing = next(folder for folder in self.path.absolute().parents if folder.is_dir())
            problem.free = shutil.disk_usage(existing).free
        return problem

    def message(self, problems: dict[int, _Problem], world_size: int) -> str:
        """The error message for the user."""
        ranks = {p.text: f"rank {rank} on {p.host}: " if world_size > 1 else "" for rank, p in reversed(problems.items())}
        what = "\n  ".join(f"{who}{text}" for text, who in ranks.items())
        free = min(p.free + p.written for p in problems.values())
        needed = max(_size(self.path), *(p.written for p in problems.values()))
        kept = "The checkpoint before it is untouched." if self.path.exists() else "There is none before it."
        return (
            f"the checkpoint {self.path} could not be saved: {what}\n"
            f"It needs {_bytes(needed)} or more beside the former one; {_bytes(free)} are free, quotas and limits apart. {kept} "
            "Make room, or see to the rights of the folder; or begin in another with trainer.default_root_dir."
        )


def _run_together(parallel: Parallel, work: Callable[[], T], room: _DiskReport) -> list[T]:
    """Call `work` on every process; if any of them fails, all raise, before the unfinished checkpoint is removed."""
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    answers = parallel.gather((result, error and room.problem(error)))
    problems = {rank: problem for rank, (_, problem) in enumerate(answers) if problem}
    if not problems:
        return [answer for answer, _ in answers]
    if all(problem.disk for problem in problems.values()):
        raise SaveError(room.message(problems, parallel.world_size)) from error
    if error is not None and parallel.world_size == 1:
        raise error
    raise RankError("\n".join(f"rank {rank}: {problem.text}" for rank, problem in problems.items())) from error


def _disk_reason(error: BaseException | None) -> str | None:
    """Why the system refused to write; None for another error. Torch may hide the reason behind its own error."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _TORCH_COULD_NOT_WRITE):
            return _disk_reason(error.__context__) or str(error).splitlines()[0]
        error = error.__cause__ or error.__context__
    return None


def _bytes(number: int) -> str:
    value, units = float(number), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
