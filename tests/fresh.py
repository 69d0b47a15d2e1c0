"""A fresh interpreter for each piece of code, at the price of one: a process that has imported torch alone, and forks.

In it nothing else is imported, annotations are not enforced, and texts are hashed by a seed of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Fresh:
    """Runs code, and returns what it printed and how it ended, as `subprocess.run` does."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": "7"},
        )

    def __call__(self, code: str, *arguments: str, path: str | Path | None = None) -> subprocess.CompletedProcess[str]:
        """What came of code that finds modules in the project's folder, and before that in `path`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"code": code, "arguments": arguments, "path": [] if path is None else [str(path)]}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        status, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(code, status, out, err)

    def close(self) -> None:
        self._process.communicate()


def _serve() -> None:
    import torch  # noqa: F401

    sys.path[0] = str(ROOT)
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                _run(asked, out.fileno(), err.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = [file.seek(0) or file.read() for file in (out, err)]
        print(json.dumps([status, *said]), flush=True)


def _run(asked: dict[str, Any], out: int, err: int) -> None:
    """Never returns: what this process was forked from goes on elsewhere."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    status: Any = 1
    try:
        sys.path[:0] = asked["path"]
        sys.argv = ["-c", *asked["arguments"]]
        exec(compile(asked["code"], "<fresh>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    _serve()
