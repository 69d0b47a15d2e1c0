"""Under bf16-true a Trainer makes bf16 the default dtype within steps: what needs more digits must not follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from varrl_lightning.algorithms.panw import panw_weights
from varrl_lightning.policies.infinity_schedules import PUBLISHED, rotary_angles
from varrl_lightning.policies.switti import crop_numbers
from varrl_lightning.policies.visual_language_model import VisualLanguageModel
from varrl_lightning.rewards.base import score_images
from varrl_lightning.schedule import VAR_256
from varrl_lightning.types import Prompt


@pytest.fixture
def bf16_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("normalisation", [0, 1, 2])
def test_positions_of_infinity(normalisation: int, bf16_by_default: None) -> None:
    grids = next(grids for grids in PUBLISHED if grids[-1][0] != grids[-1][1])
    uncached = rotary_angles.__wrapped__
    found = uncached(grids, 64, normalisation, torch.device("cpu"))
    torch.set_default_dtype(torch.float32)
    for one, other in zip(found, uncached(grids, 64, normalisation, torch.device("cpu")), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_crop_numbers_of_switti(bf16_by_default: None) -> None:
    assert crop_numbers((683, 1024)) == [512, 767, 0, 127]


def test_places_of_a_language_model() -> None:
    config = LlamaConfig(vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = VisualLanguageModel(LlamaForCausalLM(config), 8, 16, len(VAR_256))
    nothing = torch.zeros(1, 256, 16)
    wanted = model._at(nothing, 9, VAR_256)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(model._at(nothing, 9, VAR_256), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_of_scales_and_lists_of_rewards(bf16_by_default: None) -> None:
    k = panw_weights(VAR_256, 0, 10, 0.6)
    assert k.dtype == torch.float32
    assert float(k[5]) == pytest.approx(9**-0.6, rel=1e-6)
    scores = score_images(lambda *_: [0.9981], torch.zeros(1, 3, 4, 4), [Prompt("a")], "list")
    assert float(scores.values[0]) == pytest.approx(0.9981, rel=1e-6)
