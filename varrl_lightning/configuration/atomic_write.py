"""Files that are whole or not there: a process that is killed while it writes leaves the former file or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Within it, a path to write to; at its end what was written there takes the place of `path` in one step.

    A file that is written in place is empty or half there for a while: whoever looks meanwhile reads half of it, and a kill or a
    full disk leaves it so, with the former content lost. Hence the new content goes into `.NAME.part` beside the file, to be on
    the same disk, is brought to that disk, since a name must not outlive what it names when the power fails, and is renamed.
    Folders above the file are made.

    Raises:
        OSError: where it cannot be written; names `path`, and leaves it as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        flush(part)
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, part, str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from error  # in place of the part, which nobody has asked for
        raise


def replace_text(path: str | Path, text: str) -> None:
    """Replace a file by this text in UTF-8, its line ends as they are, in one step.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, from memory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
