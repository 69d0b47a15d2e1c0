"""One HTTP request within a deadline, and what the requests of one call of a reward share.

Python's own HTTP client, since the libraries' timeouts bound each read and not the whole answer, and a run must not hang.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from varrl_lightning.errors import RewardError

BUSY = (408, 429, 502, 503, 504)
"""Status codes of a server that is busy or not ready: the client waits."""
PROBE = 5.0
"""Seconds within which a healthy server answers a trivial request."""
LONGEST_PAUSE = 10.0
"""Seconds between two attempts at most."""
LARGEST_ANSWER = 64 * 2**20


class ServiceGoneError(RewardError):
    """No server that a reward needs answered within `patience` seconds."""


class RefusedError(RewardError):
    """A server rejects the request, and would reject it again: a wrong key or address, too many images."""


class AwayError(Exception):
    """The server cannot be reached, or says that it is not ready.

    Args:
        retry_after: seconds that it asks the client to wait.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FailedError(Exception):
    """The server is there, but this request went wrong."""


@dataclass(frozen=True)
class Reply:
    """What a server answered: the status code, its reason, the body, and the headers in lower case."""

    status: int
    reason: str
    body: bytes
    headers: Mapping[str, str]


def exchange(url: str, method: str, body: bytes | None, headers: Mapping[str, str], timeout: float) -> Reply:
    """Send one request, directly and through no proxy, and read the whole answer.

    Args:
        url: an http or https address with its path.
        timeout: seconds for all of it, however slowly the answer comes.

    Raises:
        TimeoutError: when they are over.
        AwayError: when the server cannot be reached, or breaks the connection off.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    deadline = _Deadline(timeout)
    try:
        connection.connect()
        deadline.watch(connection.sock)
        connection.request(method, parts.path or "/", body, dict(headers))
        response = connection.getresponse()
        content = response.read(LARGEST_ANSWER)
    except UnicodeError as error:
        raise AwayError(f"{parts.hostname!r} is no name of a host") from error
    except (OSError, http.client.HTTPException) as error:
        if deadline.over or isinstance(error, TimeoutError):
            raise TimeoutError(f"it did not answer within {timeout:g} seconds") from error
        raise AwayError(f"{type(error).__name__}: {error}") from error
    finally:
        deadline.cancel()
        connection.close()
    if deadline.over:  # an answer without a length ends where the connection does
        raise TimeoutError(f"it did not answer within {timeout:g} seconds")
    return Reply(response.status, response.reason, content, {name.lower(): value for name, value in response.getheaders()})


class _Deadline:
    """Shuts a connection down when the time is over, since a socket's timeout begins anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._ends = time.monotonic() + seconds
        self._timer: threading.Timer | None = None

    def watch(self, connection: socket.socket) -> None:
        self._timer = threading.Timer(max(0.0, self._ends - time.monotonic()), self._end, [connection])
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, connection: socket.socket) -> None:
        self.over = True
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class Attempts:
    """What the threads of one call share: whether to stop, and since when no server answers, so that one thread warns.

    Args:
        server: what the warnings call it.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._away_since: float | None = None

    def wait(self, seconds: float) -> None:
        """Wait before the next attempt.

        Raises:
            RewardError: when the call has ended meanwhile.
        """
        if self.stop.wait(seconds):
            raise RewardError(f"the requests to the {self.server} were cancelled")

    def is_away(self, why: str, patience: float) -> None:
        """Warn that no server answers, once until one is back."""
        with self._lock:
            if self._away_since is not None:
                return
            self._away_since = time.monotonic()
        # The time of day makes the text a new one, or Python's filter would not show a second outage.
        warnings.warn(f"{time.strftime('%X')} no {self.server} answers ({why}); waiting up to {patience:g} seconds", stacklevel=2)

    def is_back(self) -> None:
        """Say that one answers again, if none did."""
        with self._lock:
            since, self._away_since = self._away_since, None
        if since is not None:
            warnings.warn(
                f"{time.strftime('%X')} the {self.server} is back after {time.monotonic() - since:.0f} seconds", stacklevel=2
            )
