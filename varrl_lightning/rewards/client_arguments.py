"""Checks the arguments of rewards that ask a server: its address, the key, and numbers of seconds, requests and repetitions."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import urlsplit

LEAST = {"retries": 0, "patience": 0, "parallel": 1}
"""The least value of those numbers that have one; the others are > 0 and finite."""


def checked_key(key: str | None, variable: str) -> str | None:
    """A key as it can be sent in a header, without blanks around it; None where there is none.

    Raises:
        ValueError: for one that cannot be sent; it is not shown.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            f"the key, of api_key or the environment's {variable}, holds a character that no header can (it is not shown)"
        )
    return key or None


def check_numbers(**numbers: float) -> None:
    """Check numbers by their names: of repetitions, requests and seconds.

    Raises:
        ValueError: on one out of its range.
    """
    for name, value in numbers.items():
        least = LEAST.get(name)
        if least is None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be > 0 and finite, in seconds, got {value}")
        if least is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def checked_address(url: Any, page: str, expected: str) -> str:
    """The address of a server without the page of it that is asked, and without a slash at its end.

    Args:
        page: the page, with its slash.
        expected: what an address looks like, for the error.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(url, str):
        raise ValueError(f"url must be an address, got {url!r}; expected {expected}")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ValueError(f"url {url!r}: {error}; expected {expected}") from error
    if not valid or parts.query or parts.fragment or parts.username:
        raise ValueError(f"url {url!r} is no address of a service; expected {expected}")
    return url.rstrip("/").removesuffix(page)
