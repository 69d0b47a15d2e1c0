"""Keeps a judge's answers, so that the same question about the same picture is paid for once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from varrl_lightning.rewards.chat import ChatAnswer

KEPT = 10_000
"""Answers in memory; the oldest go first."""
_TABLE = "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL)"


class AnswerCache:
    """Answers by what was asked: model, settings, text and pictures.

    Args:
        path: an SQLite file that is made if it is missing, and that several runs and processes may share; None keeps the last
            10,000 answers in memory alone.

    Raises:
        ValueError: when the file cannot be written, or holds something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._memory: dict[str, ChatAnswer] = {}
        if self.path is not None:
            try:
                self._run(_TABLE)
                self._run("SELECT request, answer FROM answers LIMIT 0")
            except (sqlite3.Error, OSError) as error:
                raise ValueError(f"cache {str(path)!r} cannot be used as a file of answers: {error}; name a new file") from error

    @staticmethod
    def key(endpoint: str, request: Mapping[str, Any]) -> str:
        """What identifies a request, pictures included."""
        return hashlib.sha256(json.dumps([endpoint, request], sort_keys=True).encode()).hexdigest()

    def known(self, keys: Iterable[str]) -> dict[str, ChatAnswer]:
        """The answers to those requests that are known, by their keys."""
        keys = list(keys)
        answers = {key: self._memory[key] for key in keys if key in self._memory}
        rest = [key for key in keys if key not in answers]
        if rest and self.path is not None:
            rows = self._run("SELECT request, answer FROM answers WHERE request = ?", [(key,) for key in rest])
            answers |= {key: ChatAnswer.from_json(written) for key, written in rows}
        return answers

    def add(self, answers: Mapping[str, ChatAnswer]) -> None:
        """Keep answers by the keys of their requests."""
        self._memory |= answers
        for key in list(self._memory)[: max(0, len(self._memory) - KEPT)]:
            del self._memory[key]
        if answers and self.path is not None:
            self._run("INSERT OR REPLACE INTO answers VALUES (?, ?)", [(key, answer.to_json()) for key, answer in answers.items()])

    def _run(self, statement: str, rows: list[tuple[str, ...]] | None = None) -> list[Any]:
        """Run a statement for each row; a connection of its own each time, since threads and processes must not share one."""
        results: list[Any] = []
        with closing(sqlite3.connect(str(self.path), timeout=30)) as connection, connection:
            for row in rows or [()]:
                results += connection.execute(statement, row).fetchall()
        return results
