import math

import pytest
import torch

from varrl_lightning.algorithms.stages import cycle, full_stage, prefix_stage, spelled_out, stage_returns, suffix_stage
from varrl_lightning.algorithms.vmr import soft_value
from varrl_lightning.types import Stage

PPPS = ("prefix", "prefix", "prefix", "suffix")
PREFIX, SUFFIX = Stage(0, 12, 16, 2, 1, "prefix"), Stage(12, 18, 16, 1, 1, "suffix")


def test_the_papers_cycle() -> None:
    assert cycle(18, 12, 16, 2, PPPS) == (PREFIX, PREFIX, PREFIX, SUFFIX)


def test_coarse_alternation() -> None:
    assert cycle(18, 12, 16, 2, ("prefix*300", "suffix * 100")) == (PREFIX,) * 300 + (SUFFIX,) * 100


def test_plain_grpo_and_starts() -> None:
    assert cycle(18, 12, 16, 2, ("all", "suffix"), starts=16) == (
        Stage(0, 18, 16, 1, 1, "all"),
        Stage(12, 18, 16, 1, 16, "suffix"),
    )


@pytest.mark.parametrize("alternation", [("prefix",), ("prefix*3", "suffix"), ("suffix", "prefix*2", "all", "prefix")])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 6])
def test_every_nth_update_on_drafts_is_a_calibration(alternation: tuple[str, ...], every: int) -> None:
    plain, found = (cycle(18, 12, 16, 0, alternation, calibrate_every=n) for n in (None, every))
    number = 0
    for update in range(300):  # of a run that goes through both cycles over and over
        stage, wanted = found[update % len(found)], plain[update % len(plain)]
        number += wanted.scores_drafts
        calibrated = wanted.scores_drafts and number % every == 0
        assert stage == (Stage(0, 12, 16, 2, 1, "calibration", with_drafts=True) if calibrated else wanted)


def test_m_at_the_end_leaves_nothing_to_split() -> None:
    assert cycle(18, 18, 16, 2, PPPS) == (full_stage(18, 16),) == (Stage(0, 18, 16, 1, 1, "all"),)


def test_the_papers_indices() -> None:
    assert cycle(18, 12, 16, 2, ("prefix", "suffix"), first_scale="shared") == (
        Stage(1, 12, 16, 2, 1, "prefix"),
        SUFFIX,
    )
    assert full_stage(18, 16, "shared") == Stage(1, 18, 16, 1, 1, "all")
    assert cycle(18, 12, 16, 2, ("prefix", "suffix", "all"), first_scale="per_branch") == (
        Stage(1, 12, 16, 2, 16, "prefix"),
        SUFFIX,
        Stage(1, 18, 16, 1, 16, "all"),
    )


def test_a_stage_that_is_not_named_cannot_be_in_error() -> None:
    assert cycle(18, 12, 16, 2, ("prefix",), starts=5) == (PREFIX,)


def test_returns_are_soft_values_before_the_end_and_rewards_at_the_end() -> None:
    rewards = torch.tensor([[[0.1, 2.0], [math.nan, 1.0]]])
    valid = torch.tensor([[[True, True], [False, True]]])
    stage = Stage(0, 2, 2, 2)
    assert torch.equal(stage_returns(rewards, stage, 0.5, valid), soft_value(rewards, 0.5, valid))
    terminal = torch.randn(1, 50, 1)
    last = stage_returns(terminal, Stage(0, 3, 50), 0.3)
    assert torch.equal(last, terminal[..., 0]), "exactly: eta plays no part"
    terminal[0, 3], terminal[0, 4] = math.nan, math.inf
    valid = torch.ones(1, 50, 1, dtype=torch.bool)
    valid[0, 5] = False
    assert stage_returns(terminal, Stage(0, 3, 50), 0.3).isnan().nonzero().tolist() == [[0, 3], [0, 4]]
    assert stage_returns(terminal, Stage(0, 3, 50), 0.3, valid).isnan().nonzero().tolist() == [[0, 3], [0, 5]]


def test_drafts_have_a_column_of_their_own() -> None:
    stage = prefix_stage(18, 12, 16, 0)
    assert stage == Stage(0, 12, 16, continuations=0, name="prefix")
    assert cycle(18, 12, 16, 0, PPPS) == (stage,) * 3 + (SUFFIX,)
    assert (stage.scores_drafts, stage.images_per_branch, stage.images_per_prompt) == (True, 1, 16)
    assert [(s.scores_drafts, s.images_per_branch, s.images_per_prompt) for s in (PREFIX, SUFFIX)] == [
        (False, 2, 32),
        (False, 1, 16),
    ]
    rewards = torch.tensor([[[0.5], [math.nan]]])
    assert stage_returns(rewards, Stage(0, 2, 2, 0), 0.3).nan_to_num(-1).tolist() == [[0.5, -1.0]]
    with pytest.raises(ValueError, match=r"has \(A, K\) = \(2, 1\), got rewards of \(2, 0\)"):
        stage_returns(torch.zeros(1, 2, 0), Stage(0, 2, 2, 0), 1.0)


@pytest.mark.parametrize("alternation", [("suffix",), ("all", "suffix*2")])
def test_drafts_need_a_prefix(alternation: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"num_continuations = 0 scores the drafts .* but the alternation .* has no prefix"):
        cycle(18, 12, 16, 0, alternation)
    assert cycle(18, 18, 16, 0, alternation) == (full_stage(18, 16),)  # K is ignored, as any other


def test_no_draft_ends_with_the_last_scale() -> None:
    with pytest.raises(ValueError, match=r"Stage\(start=2, stop=4, .*\) ends with the last scale, where continuations is 1"):
        spelled_out([Stage(2, 4, 4, 0)], T=4)
    with pytest.raises(ValueError, match=r"num_continuations \(K\) must be at least 0, which scores drafts, got -1"):
        Stage(0, 2, 4, -1)


def test_errors_name_value_and_range() -> None:
    with pytest.raises(ValueError, match="unknown stage 'middle' in alternation; there are: prefix, suffix, all"):
        cycle(18, 18, 16, 2, ("middle",))
    with pytest.raises(ValueError, match=r"positive integer, as in 'prefix\*3', got 'prefix\*0'"):
        cycle(18, 12, 16, 2, ("prefix*0",))
    with pytest.raises(ValueError, match=r"positive integer, as in 'prefix\*3', got 'prefix\*'"):
        cycle(18, 12, 16, 2, ("prefix*",))
    with pytest.raises(ValueError, match="alternation must name at least one stage, got none"):
        cycle(18, 12, 16, 2, ())
    with pytest.raises(ValueError, match=r"m must be in \[1, 18\], the number of scales, got 19"):
        cycle(18, 19, 16, 2, PPPS)
    with pytest.raises(ValueError, match=r"a prefix needs m in \[1, 4\), got 4"):
        prefix_stage(4, 4, 16, 2)
    with pytest.raises(ValueError, match=r"a suffix needs m in \[1, 4\), got 0"):
        suffix_stage(4, 0, 16)
    with pytest.raises(ValueError, match="with first_scale 'shared' a prefix needs m of at least 2, got 1"):
        prefix_stage(4, 1, 16, 2, "shared")
    with pytest.raises(ValueError, match="with first_scale 'per_branch' a prefix needs m of at least 2, got 1"):
        prefix_stage(4, 1, 16, 2, "per_branch")
    with pytest.raises(ValueError, match=r"stage 'all' has \(A, K\) = \(2, 1\), got rewards of \(3, 2\)"):
        stage_returns(torch.zeros(1, 3, 2), Stage(0, 3, 2), 1.0)
