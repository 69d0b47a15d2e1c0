"""Runs for the tests of the page: one that is trained, and folders written by hand in the formats of the real writers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from tests.callbacks.running import Watched, prompts_file, trainer
from tests.tiny import WORDS, tiny_module
from varrl_lightning.callbacks import RewardHacking, ScaleConflict
from varrl_lightning.callbacks.sample_tables import SampleTables
from varrl_lightning.callbacks.samples import SampleGrids
from varrl_lightning.callbacks.summary import Summary
from varrl_lightning.configuration.files import find_config
from varrl_lightning.data import PromptDataModule
from varrl_lightning.figures.samples import Sample, save_samples

EVIL = '<img src=x onerror=alert(1)></script><!-- & "STONE"'


def trained(folder: Path) -> Path:
    """A run of two stages with every callback whose numbers the page shows, and the quick-start's configuration beside it."""
    folder.mkdir(parents=True)
    data = PromptDataModule(
        train=prompts_file(folder / "train.jsonl", WORDS),
        validation=prompts_file(folder / "validation.jsonl", ["LIGHT", "WATER", "EARTH", "SMALL"]),
        batch_size=2,
    )
    callbacks = [
        SampleGrids(count=4),
        SampleTables(prompts=1, every_n_steps=1),
        Summary(),
        ScaleConflict(every_n_steps=2, batches=4, prompts=1, blocks=4),
        RewardHacking(prompts=4, groups=2, group_size=2),
    ]
    module = tiny_module(reward=Watched(), alternation=["prefix", "suffix"], num_continuations=1, group_size=2, kl_coef=0.01)
    settings = {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    trainer(folder, callbacks, **settings).fit(module, data)
    write_config(folder, seed=0)
    return folder


def write_config(folder: Path, seed: int, **changes: str) -> None:
    """The quick-start's configuration with another seed; `changes` replace one text by another."""
    text = find_config("quickstart.yaml").read_text(encoding="utf-8").replace("seed_everything: 0", f"seed_everything: {seed}")
    for old, new in changes.items():
        assert f"{old}: " in text
        text = "".join(
            f"{line.split(':')[0]}: {new}\n" if line.strip().startswith(f"{old}: ") else f"{line}\n" for line in text.split("\n")
        )
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def written(folder: Path, columns: Mapping[str, Sequence[float]], seed: int | None = None) -> Path:
    """A run folder with `metrics.csv` of these columns, a row for each step."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [",".join(["step", *columns])]
    rows += [",".join(map(repr, (step, *values))) for step, values in enumerate(zip(*columns.values(), strict=True))]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    if seed is not None:
        write_config(folder, seed)
    return folder


def sampled(folder: Path, steps: Sequence[int] = (0, 9), text: str = EVIL, count: int = 2) -> Path:
    """Samples of a prompt at these steps, misread at first and right at the end."""
    for step in steps:
        right = step == steps[-1]
        image = np.full((8, 12, 3), (40 + step) % 256, dtype=np.uint8)
        sample = Sample(image, text, ("STONE",), ("STONE",) if right else ("ST<B>E",), right, float(right))
        save_samples(folder / "samples" / "raw" / f"step_{step:06d}.png", [sample] * count, step)
    return folder


class Parsed(HTMLParser):
    """What a browser would find in a page: elements, addresses, text, and the plots' specifications."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = self.scripts = ""
        self.specs: list[dict[str, object]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" not in self.open:
            self.text += data
        elif self.elements[-1] == ("script", {"type": "application/json", "id": "specs"}):
            self.specs = json.loads(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]
