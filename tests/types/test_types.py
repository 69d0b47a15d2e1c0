"""What flows through the program refuses what makes no sense, and is not changed on its way."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection

from varrl_lightning.types import Box, Prompt, Sampling, SamplingChanges

PROMPT = Prompt('a sign "OPEN"', regions=(Box(0, 0, 4, 4),), label=3)


def test_a_prompt_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError, match=r"cannot change label of a Prompt; use dataclasses.replace"):
        PROMPT.label = 4
    with pytest.raises(FrozenInstanceError, match="cannot change x0 of a Box"):
        PROMPT.regions[0].x0 = 1.0
    assert replace(PROMPT, label=4).label == 4
    assert PROMPT.label == 3
    assert hash(PROMPT) == hash(replace(PROMPT))


def test_lightning_moves_and_converts_batches_of_prompts() -> None:
    """Under bf16-true it rebuilds whatever is a dataclass, field by field."""
    batch = [PROMPT, PROMPT]
    assert move_data_to_device(batch, torch.device("cpu")) == batch
    assert apply_to_collection({"prompts": batch}, torch.Tensor, torch.Tensor.bfloat16) == {"prompts": batch}


def test_guidance_and_temperature_by_scale() -> None:
    sampling = Sampling(cfg=(0.0, 6.0, 3.0), temperature=(1.0, 1.0, 0.1))
    sampling.check(3)
    assert [sampling.cfg_at(t) for t in range(3)] == [0.0, 6.0, 3.0]
    assert [sampling.temperature_at(t) for t in range(3)] == [1.0, 1.0, 0.1]
    assert [Sampling(cfg=2.0).cfg_at(t) for t in range(2)] == [2.0, 2.0]
    assert Sampling().cfg_at(1) is None


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(cfg=(1.0, 2.0)), r"sampling.cfg must be one number or one for each of the 3 scales, got 2"),
        (Sampling(temperature=(1.0,) * 4), r"sampling.temperature must be one number or one for each of the 3 scales, got 4"),
    ],
)
def test_what_is_said_per_scale_is_said_for_every_scale(sampling: Sampling, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling.check(3)


def test_changes_leave_the_rest_of_a_familys_sampling() -> None:
    own = Sampling(cfg=4.0, top_k=900, top_p=0.95, temperature=0.5)
    assert SamplingChanges().over(own) == own
    assert SamplingChanges(cfg=3.0).over(own) == replace(own, cfg=3.0)
    assert SamplingChanges(cfg=None, top_k=1, temperature=(1.0, 0.1)).over(own) == Sampling(None, 1, 0.95, (1.0, 0.1))
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], got 2"):
        SamplingChanges(top_p=2).over(own)


def test_values_out_of_range_by_scale() -> None:
    with pytest.raises(ValueError, match=r"temperature must be positive and finite, got \(1.0, 0.0\)"):
        Sampling(temperature=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"cfg must be finite, or null for no guidance, got \(1.0, inf\)"):
        Sampling(cfg=(1.0, float("inf")))
