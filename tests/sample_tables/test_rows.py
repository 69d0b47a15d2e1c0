"""Rows are what the rollout drew, what rewards said of it and the credit that the loss used; each case samples once, in 0.1 s."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import PROMPTS, SCHEDULE, LeftBright, M, tiny_module
from varrl_lightning.grpo.credit import Credit
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.mask_sources.base import BaseMaskSource
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.sample_tables.copies import ScoredImages, credit_of_first, scored_images
from varrl_lightning.sample_tables.parquet import read_sample_tables, table_path, write_sample_table
from varrl_lightning.sample_tables.pngs import from_png
from varrl_lightning.sample_tables.rows import SampleRow, sample_rows
from varrl_lightning.types import Prompt, Rollout, Scores, Stage

pytestmark = pytest.mark.filterwarnings("ignore:the reward 'a' gave no score to some images")


class Reads(LeftBright):
    """`LeftBright` with a part, a text for each image, and no score for the first image."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = super().__call__(images, prompts)
        values = torch.where(torch.arange(len(values)) == 0, torch.nan, values)
        return Scores(
            values, components={"mean": images.mean((1, 2, 3))}, texts=[[p.words[0], f"{i}"] for i, p in enumerate(prompts)]
        )


class LeftHalf(BaseMaskSource):
    """The left half of each image."""

    def __call__(self, rollout: Rollout, scores: Scores, policy: VARPolicy) -> Tensor:
        mask = torch.zeros_like(rollout.images[:, 0])
        mask[..., : mask.shape[-1] // 2] = 1.0
        return mask


STAGES = {
    "K = 0": Stage(0, M, 4, continuations=0, name="prefix"),
    "K = 1": Stage(0, M, 4, continuations=1, name="prefix"),
    "K = 2": Stage(0, M, 4, continuations=2, name="prefix"),
    "suffix": Stage(M, len(SCHEDULE), 4, name="suffix"),
    "suffix of two starts": Stage(M, len(SCHEDULE), 4, starts=2, name="suffix"),
}


class Sampled:
    """A rollout of two prompts, and the copy of its first group."""

    def __init__(self, stage: Stage, side: int | None = None, branches: Sequence[int] | None = None) -> None:
        self.stage = stage
        self.module: VARGRPO = tiny_module(
            stages=[stage], reward={"a": {"reward": Reads()}, "b": {"reward": LeftBright(), "weight": 0.5}}, mask_source=LeftHalf()
        )
        grpo, policy = self.module.grpo, self.module.policy
        keys = prompt_keys(0, 0, PROMPTS[:2], policy.device)
        self.copies: list[ScoredImages] = []
        rollout, parts = grpo.sample_and_score_part(policy, PROMPTS[:2], stage, keys, branches=branches)
        self.rollout = rollout
        scores = grpo.scores_by_branch(policy, rollout, parts, lambda *seen: self.copies.append(scored_images(*seen, 1, side)))
        self.scores = scores
        self.credit: Credit | None = grpo.assign(rollout, scores) if branches is None else None

    @property
    def rows(self) -> list[SampleRow]:
        assert self.credit is not None
        return sample_rows(self.copies[0], credit_of_first(self.credit, 1), step=7)


@pytest.fixture(scope="module", params=STAGES, ids=list(STAGES))
def sampled(request: pytest.FixtureRequest) -> Sampled:
    return Sampled(STAGES[request.param])


def test_there_is_a_row_for_each_image_of_the_first_group(sampled: Sampled) -> None:
    K = max(sampled.stage.continuations, 1)
    assert [(r.group, r.branch, r.continuation) for r in sampled.rows] == [(0, a, k) for a in range(4) for k in range(K)]
    assert {(r.step, r.stage, r.prompt, r.words) for r in sampled.rows} == {(7, sampled.stage.name, '"STONE"', ("STONE",))}


def test_numbers_are_those_of_the_loss(sampled: Sampled) -> None:
    credit = sampled.credit
    assert credit is not None
    used = credit.rows(range(4), 4)
    for row in sampled.rows:
        assert row.advantage == float(used.advantages[row.branch])
        expected = float(credit.returns[0, row.branch])
        assert row.return_ == (None if np.isnan(expected) else expected)
        assert row.reward == float(credit.rewards[0, row.branch, row.continuation])
    assert len({row.advantage for row in sampled.rows}) >= 3


def test_each_reward_and_part_is_that_of_the_image(sampled: Sampled) -> None:
    for i, row in enumerate(sampled.rows):
        values = {name: float(v.flatten()[i]) for name, v in sampled.scores.values.items()}
        assert row.rewards == {"a": None if i == 0 else values["a"], "b": values["b"]}
        assert row.parts == {"a.mean": float(sampled.scores.components["a"]["mean"].flatten()[i])}
        assert row.read == ("STONE", str(i))


def test_pictures_are_the_images_and_the_masks_of_the_trained_scales(sampled: Sampled) -> None:
    credit, stage = sampled.credit, sampled.stage
    assert credit is not None
    grids = SCHEDULE.grids[stage.start : stage.stop]
    for i, row in enumerate(sampled.rows):
        expected = (sampled.rollout.images[i].permute(1, 2, 0) * 255).round().byte().numpy()
        assert (from_png(row.image) == expected).all()
        masks = [from_png(mask) for mask in row.masks]
        assert [mask.shape for mask in masks] == list(grids)
        flat = np.concatenate([mask.flatten() for mask in masks])
        assert (flat == credit.mask[row.branch].numpy() * 255).all()
        assert 0 < flat.mean() < 255 or stage.stop == 1
        assert row.image_mask is not None
        assert (from_png(row.image_mask) == (np.arange(16) < 8) * 255).all()
    assert row.scales[-1] == f"scale {stage.stop}, {grids[-1][0]}x{grids[-1][1]}"


def test_a_table_is_read_as_it_was_written(sampled: Sampled, tmp_path: Path) -> None:
    write_sample_table(table_path(tmp_path, 7), sampled.rows)
    assert read_sample_tables(tmp_path) == sampled.rows
    assert [path.name for path in (tmp_path / "samples" / "tables").iterdir()] == ["step_000007.parquet"]


def test_copies_are_made_smaller_and_keep_nothing_of_the_rollout() -> None:
    sampled = Sampled(STAGES["K = 2"], side=8)
    rows = sampled.rows
    images, rewards = weakref.ref(sampled.rollout.images), weakref.ref(sampled.rollout.log_probs[0])
    mean = sampled.rollout.images[0].unflatten(1, (8, 2)).unflatten(3, (8, 2)).mean((2, 4)).permute(1, 2, 0).numpy()
    del sampled.rollout
    assert images() is None
    assert rewards() is None
    assert np.abs(from_png(rows[0].image) - mean * 255).max() <= 0.51
    assert rows[0].image_mask is not None
    assert from_png(rows[0].image_mask).shape == (8, 8)


def test_a_process_copies_the_images_of_its_own_branches_once() -> None:
    """Branches 2 and 3 of the first group, and branch 3 again, as in a share that is filled up."""
    copy = Sampled(STAGES["K = 2"], branches=(2, 3, 3)).copies[0]
    assert copy.places == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert len(copy.images) == 4
