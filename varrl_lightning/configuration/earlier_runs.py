"""Keeps what earlier runs have left in a run folder: under `earlier/1`, `earlier/2`, ..., the oldest first.

Things are renamed, never removed, and checkpoints go first: a process that is killed in between leaves each thing either in the
run folder or below `earlier`, and a job that a cluster then starts again does not resume from another run's checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

EARLIER = "earlier"
RESULTS = ("checkpoints", "metrics.csv", "summary.json", "alarms.json", "samples", "figures", "tensorboard")
"""What a run leaves in its folder, besides the configuration."""
CONFIG = "config.yaml"
"""Copied, not moved: a command that names it must work again when it is repeated."""
_OLD = ".earlier"
"""Suffix by which version 0.2 named another run's checkpoints that it left beside a run's own."""


def keep_earlier_run(run: Path, given: Path | None = None, into: Path | None = None, live: Iterable[str] = ()) -> Path | None:
    """Make a run folder ready for a run; returns where an earlier run's files are now, None where there were none.

    A run that goes on from its own `last.ckpt` goes on in place. One that goes on from an earlier state of its own keeps the end
    that it will replace. Any other run begins in an empty folder; from the checkpoint of a run that is kept in this folder, it
    begins with a copy of that run's metrics and samples.

    Args:
        given: the checkpoint that the run begins from; it is never moved.
        into: the folder below `earlier` to use; a new one when None.
        live: names in the run folder that this run writes to already, and that stay.
    """
    if given is not None and _is_own(run, given):
        return _keep_end(run, given)
    names = [name for name in RESULTS if name not in live and _holds_something(run / name)]
    place = into or _begun(run, names) or (_new(run) if names else None)
    if place is not None:
        for name in names:
            _move(run / name, place / name, given)
        place = _finished(run, place)
    if given is not None and (kept := _kept_run(run, given)) is not None:
        _copy(kept, run, ("metrics.csv", "samples"))
    return place


def keep_alone(path: Path) -> Path | None:
    """Move one file or folder of a run folder to a new place below `earlier`; returns that place, None where there is nothing."""
    if not _holds_something(path):
        return None
    place = _begun(path.parent, [path.name]) or _new(path.parent)
    _move(path, place / path.name, None)
    return _finished(path.parent, place)


def kept_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of the earlier runs that are kept in a run folder."""
    return sorted((run / EARLIER).glob("*/checkpoints/*.ckpt*"))


# --- which run a checkpoint belongs to ----------------------------------------------------------------------------------------


def _is_own(run: Path, given: Path) -> bool:
    """Whether a checkpoint lies in the run folder, and not among what is kept of earlier runs."""
    return given.exists() and not given.name.endswith(_OLD) and _below(run, given) and _kept_run(run, given) is None


def _kept_run(run: Path, given: Path) -> Path | None:
    """The folder below `earlier` that a checkpoint lies in."""
    for path in _names(given):
        for folder in _names(run / EARLIER):
            if path.is_relative_to(folder) and path != folder:
                return folder / path.relative_to(folder).parts[0]
    return None


def _below(run: Path, path: Path) -> bool:
    """Whether a path lies in the run folder, by its name or by what its links lead to; `checkpoints` may be a link itself."""
    folders = [*_names(run), (run / "checkpoints").resolve()]
    return any(name.is_relative_to(folder) for name in _names(path) for folder in folders)


def _names(path: Path) -> list[Path]:
    return [Path(os.path.abspath(path)), path.resolve()]


# --- places below `earlier` ---------------------------------------------------------------------------------------------------


def _begun(run: Path, names: Iterable[str]) -> Path | None:
    """The folder that a killed process has begun to fill and that has none of these names; one that has some is complete."""
    for place in sorted((run / EARLIER).glob("*.part")):
        if not any(_there(place / name) for name in names):
            return place
        _finished(run, place)
    return None


def _new(run: Path) -> Path:
    numbers = [int(p.name.removesuffix(".part")) for p in _numbered(run / EARLIER)]
    place = run / EARLIER / f"{max(numbers, default=0) + 1}.part"
    place.mkdir(parents=True)
    return place


def _finished(run: Path, place: Path) -> Path:
    """Take the mark off a folder that is complete, and add the configuration."""
    if not (place / CONFIG).exists():
        _copy(run, place, (CONFIG,))
    done = place.with_name(place.name.removesuffix(".part"))
    place.rename(done)
    return done


def _numbered(earlier: Path) -> Iterator[Path]:
    if earlier.is_dir():
        yield from (p for p in earlier.iterdir() if p.name.removesuffix(".part").isdecimal())


# --- moving -------------------------------------------------------------------------------------------------------------------


def _keep_end(run: Path, given: Path) -> Path | None:
    """Keep the state that a run had reached when it goes on from an earlier one, which it will soon overwrite."""
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    # Another checkpoint than the best may be older than it, so that a worse one would replace it.
    others = [path for path in (last, best) if path.exists() and path.resolve() != given.resolve()]
    if last.resolve() == given.resolve() or not others:
        return None
    place = _begun(run, RESULTS) or _new(run)
    (place / "checkpoints").mkdir(exist_ok=True)
    _copy(run, place, ("metrics.csv", "samples"))
    for name in ("summary.json", "alarms.json", "figures"):
        if _holds_something(run / name):
            _move(run / name, place / name, None)
    for path in others:
        _move_checkpoint(path, place / "checkpoints")
    return _finished(run, place)


def _move(path: Path, to: Path, given: Path | None) -> None:
    """Rename a file or folder of a run folder, without the checkpoint that is given and what it leads to."""
    if given is not None and any(name.is_relative_to(folder) for name in _names(given) for folder in _names(path)):
        to.mkdir()
        for entry in path.iterdir():
            if not {*_names(entry)} & {*_names(given)}:
                entry.rename(to / entry.name)
    elif path.is_symlink():
        to.symlink_to(path.resolve())  # a relative link would lead elsewhere from there
        path.unlink()
    else:
        path.rename(to)


def _move_checkpoint(path: Path, folder: Path) -> None:
    """Rename a checkpoint; that of a sharded run is a link, and the folder that it leads to goes along."""
    target = path.resolve()
    if path.is_symlink() and target.parent == path.parent.resolve():
        (folder / path.name).symlink_to(target.name)
        target.rename(folder / target.name)  # if this is the last that a killed process does, a link to nothing is left here
        path.unlink()
    else:
        path.rename(folder / path.name)


def _copy(source: Path, to: Path, names: Iterable[str]) -> None:
    """Copy those files and folders that are there and whose name is free."""
    for name in names:
        if (to / name).exists():
            continue
        if (source / name).is_dir():
            shutil.copytree(source / name, to / name)
        elif (source / name).is_file():
            shutil.copyfile(source / name, to / name)


def _there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _holds_something(path: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    return next(path.iterdir(), None) is not None if path.is_dir() else _there(path)
