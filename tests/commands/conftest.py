"""A folder with a configuration and its prompt files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands.tiny_config import TINY, WriteConfig


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("VARRL_DEBUG", raising=False)
    yield
    # seed_everything leaves its seed in the environment.
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteConfig:
    """Makes a folder with prompt files the current one; writes `t.yaml`: TINY with changes by dotted key; returns its name."""
    monkeypatch.chdir(tmp_path)
    for name, words in (("train", "STONE RIVER BREAD CLOUD"), ("few", "PLANT HORSE"), ("some", "CHAIR TABLE")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f'"{w}"'}) + "\n" for w in words.split()))

    def write_config(changes: dict[str, Any] | None = None) -> str:
        tree = json.loads(json.dumps(TINY))
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            branch = tree
            for part in path:
                branch = branch.setdefault(part, {})
            branch[last] = value
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(tree))
        return "t.yaml"

    return write_config
