"""The best of several candidates. Costs five seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from tiny import PROMPTS, tiny_module, tiny_policy
from torch import Tensor

from varrl_lightning.commands.best_of import built_best_of, report_best_of
from varrl_lightning.errors import ConfigError
from varrl_lightning.evaluation.best_of import BestOf, best_of
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt, Sampling, Scores, Stage

N = 5


class Bright:
    """The mean of the pixels, and no score for the prompt "NONE"."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = images.mean(dim=(1, 2, 3))
        return Scores(values, valid=torch.tensor(["NONE" not in prompt.words for prompt in prompts]))


class Rank:
    """The place of an image in its group, which must be whole."""

    whole_groups = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert len(images) == N
        return images.mean(dim=(1, 2, 3)).argsort().argsort().float()


def _rewards(reward: object) -> WeightedRewards:
    return WeightedRewards.from_spec(reward)


@pytest.mark.parametrize("reward", [Bright(), Rank()])
@pytest.mark.parametrize("images_at_once", [None, 3])
def test_the_brightest_of_the_whole_candidates_is_kept(reward: object, images_at_once: int | None) -> None:
    policy, prompts = tiny_policy(), list(PROMPTS[:2])
    keys = prompt_keys(0, 0, prompts, policy.device)
    chosen = best_of(policy, prompts, Sampling(), keys, BestOf(N, _rewards(reward)), images_at_once)
    every = sample_tree(policy, prompts, Stage(0, len(policy.schedule()), branches=N), Sampling(), keys).images
    brightness = every.mean(dim=(1, 2, 3)).view(2, N)
    assert chosen.best.tolist() == brightness.argmax(dim=1).tolist()
    torch.testing.assert_close(chosen.images, every[[p * N + b for p, b in enumerate(chosen.best.tolist())]])


def test_a_pruned_candidate_is_the_one_of_the_best_draft_completed() -> None:
    policy, prompts, m = tiny_policy(), list(PROMPTS[:2]), 2
    keys = prompt_keys(0, 0, prompts, policy.device)
    chosen = best_of(policy, prompts, Sampling(), keys, BestOf(N, _rewards(Bright()), prune_at=m))
    drafts = sample_tree(policy, prompts, Stage(0, m, branches=N, continuations=0), Sampling(), keys).images
    torch.testing.assert_close(chosen.values, drafts.mean(dim=(1, 2, 3)).view(2, N))
    whole = sample_tree(policy, prompts, Stage(0, m, branches=N, continuations=1), Sampling(), keys).images
    assert not torch.allclose(whole, drafts)
    for p, b in enumerate(chosen.values.argmax(dim=1).tolist()):
        torch.testing.assert_close(chosen.images[p], whole[p * N + b])


@pytest.mark.filterwarnings("ignore:the reward 'Bright' gave no score")
def test_candidates_without_a_score_are_kept_only_where_none_has_one() -> None:
    policy, prompts = tiny_policy(), [Prompt('"NONE"'), PROMPTS[0]]
    keys = prompt_keys(0, 0, prompts, policy.device)
    chosen = best_of(policy, prompts, Sampling(), keys, BestOf(2, _rewards(Bright())))
    assert chosen.values.isnan().tolist() == [[True, True], [False, False]]
    assert chosen.best[0] == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [({"candidates": 1}, "at least 2 candidates"), ({"candidates": 2, "prune_at": 0}, "prune_at must be at least 1 scale, got 0")],
)
def test_numbers_out_of_range(options: dict[str, int], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        BestOf(rewards=_rewards(Bright()), **options)


def test_there_must_be_scales_left_to_sample() -> None:
    T = len(tiny_policy().schedule())
    with pytest.raises(ValueError, match=f"prune_at must be below {T}, the number of scales, got {T}"):
        BestOf(2, _rewards(Bright()), prune_at=T).check_policy(tiny_policy())
    BestOf(2, _rewards(Bright()), prune_at=T - 1).check_policy(tiny_policy())


def _options(**given: object) -> Namespace:
    return Namespace({"best_of": None, "best_by": None, "prune_at": None} | given)


def test_the_options_of_the_command(tmp_path: Path) -> None:
    module = tiny_module()
    assert built_best_of(_options(), module, PROMPTS) is None
    with pytest.raises(ConfigError, match="--best_by and --prune_at chooses among several images of a prompt: give their number"):
        built_best_of(_options(best_by="sharpness", prune_at=2), module, PROMPTS)
    own, other = (built_best_of(_options(best_of=3, best_by=by), module, PROMPTS) for by in (None, "sharpness"))
    assert own is not None
    assert own.rewards is module.rewards
    assert other is not None
    assert list(other.rewards.terms) == ["sharpness"]
    text = report_best_of(other, [[1.0, 2.0, math.nan], [4.0, 0.0, 2.0]], PROMPTS[:2], tmp_path)
    assert text == f"Best of 3 by sharpness: 3.000; mean of all candidates 1.750. All values: {tmp_path / 'best_of.json'}"
    written = json.loads((tmp_path / "best_of.json").read_text())
    assert written["prompts"][0] == {"prompt": PROMPTS[0].text, "values": [1.0, 2.0, None]}
    assert "No candidate has a score by sharpness" in report_best_of(other, [[math.nan] * 3], PROMPTS[:1], tmp_path)


def test_predict_keeps_the_best_and_notes_what_all_were_worth() -> None:
    module = tiny_module()
    module.evaluator.best_of = BestOf(N, _rewards(Bright()))
    one = module.evaluator.predict(PROMPTS[:3], module.parallel, same_everywhere=True)
    assert one.shape[0] == len(module.evaluator.candidates) == 3
    best = torch.tensor([max(values) for values in module.evaluator.candidates])
    torch.testing.assert_close(one.mean(dim=(1, 2, 3)), best)
