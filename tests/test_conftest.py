import pytest
import torch
from jaxtyping import TypeCheckError

from varrl_lightning.algorithms.losses import policy_loss
from varrl_lightning.algorithms.vmr import soft_value


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        policy_loss(torch.ones(2, 3), torch.ones(3, 2))


def test_an_int_passes_for_a_float() -> None:
    assert soft_value(torch.ones(1, 1, 2), 1).item() == pytest.approx(1)
