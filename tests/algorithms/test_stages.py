import math

import pytest
import torch

from varrl_lightning.algorithms.stages import cycle, full_stage, prefix_stage, stage_returns, suffix_stage
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


def test_m_at_the_end_leaves_nothing_to_split() -> None:
    assert cycle(18, 18, 16, 2, PPPS) == (full_stage(18, 16),) == (Stage(0, 18, 16, 1, 1, "all"),)


def test_the_papers_indices() -> None:
    assert cycle(18, 12, 16, 2, ("prefix", "suffix"), first_scale="shared") == (
        Stage(1, 12, 16, 2, 1, "prefix"),
        SUFFIX,
    )
    assert full_stage(18, 16, "shared") == Stage(1, 18, 16, 1, 1, "all")


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
    with pytest.raises(ValueError, match=r"stage 'all' has \(A, K\) = \(2, 1\), got rewards of \(3, 2\)"):
        stage_returns(torch.zeros(1, 3, 2), Stage(0, 3, 2), 1.0)
