"""How large the groups of variants are, whichever way their number is given. Costs a second."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_module
from varrl_lightning.callbacks.gradient_agreement import described_variants

PREFIX = {"stage": "prefix", "m": 2}


def test_one_number_takes_the_place_of_the_other() -> None:
    module = tiny_module(group_size=None, images_per_prompt=8, num_continuations=2)
    assert [(stage.name, stage.branches) for stage in module.cycle] == [*[("prefix", 4)] * 3, ("suffix", 8)]
    described = {
        "prefix": PREFIX,
        "more continuations": PREFIX | {"num_continuations": 4},
        "drafts": PREFIX | {"num_continuations": 0},
        "branches": PREFIX | {"group_size": 6},
        "images": PREFIX | {"images_per_prompt": 12},
        "all": {"stage": "all", "first_scale": "per_branch"},
    }
    variants = described_variants(module, described, kl=False)
    assert [v.stage.branches for v in variants] == [4, 2, 8, 6, 6, 8]
    assert (variants[-1].stage.start, variants[-1].stage.starts) == (1, 8)
    with pytest.raises(ValueError, match="the variant 'x': group_size = 4 counts branches and images_per_prompt = 8 images"):
        described_variants(module, {"x": PREFIX | {"group_size": 4, "images_per_prompt": 8}}, kl=False)


def test_arguments_that_were_saved_before_there_was_another_number() -> None:
    module = tiny_module(group_size=4)
    del module.hparams["images_per_prompt"]
    assert described_variants(module, {"prefix": PREFIX}, kl=False)[0].stage.branches == 4
