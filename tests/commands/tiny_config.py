"""A configuration of the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WriteConfig = Callable[..., str]


def named(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


TINY: dict[str, Any] = {
    "model": {
        "policy": named("tiny.tiny_policy"),
        "reward": "tiny.LeftBright",
        "mask_source": "full",
        "m": 2,
        "group_size": 2,
        "num_continuations": 2,
    },
    "data": {"train": "train.jsonl", "validation": "few.jsonl", "test": "some.jsonl", "batch_size": 2},
    "trainer": {"accelerator": "cpu", "max_steps": 2, "val_check_interval": 1, "enable_progress_bar": False},
}
