import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.panw import log_panw_weights, panw_weights, row_weights, row_weights_of_logs, scale_shares
from varrl_lightning.schedule import NEXTFLOW_1024, Schedule, square

SMALL = Schedule(((1, 1), (2, 1), (3, 2)))


def test_k_t_is_eq_9() -> None:
    expected = [1 / (h * w) ** 0.6 for h, w in SMALL.grids[1:] for _ in range(h * w)]
    torch.testing.assert_close(panw_weights(SMALL, 1, 3, 0.6), torch.tensor(expected))


def test_alpha_0_counts_tokens_alike_and_alpha_1_scales_alike() -> None:
    assert panw_weights(SMALL, 0, 3, 0.0).tolist() == [1.0] * 9
    sums = [part.sum().item() for part in panw_weights(SMALL, 0, 3, 1.0).split(list(SMALL.lengths))]
    assert sums == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize(("alpha", "share"), [(0.0, 0.41), (0.6, 0.17), (1.0, 0.06)])
def test_share_of_the_64x64_scale(alpha: float, share: float) -> None:
    """It has 4096 of the 10,084 tokens, and is one of 18 scales."""
    shares = scale_shares(NEXTFLOW_1024, 0, 18, alpha)
    assert sum(shares) == pytest.approx(1)
    assert shares[-1] == pytest.approx(share, abs=0.005)
    k = panw_weights(NEXTFLOW_1024, 0, 18, alpha)
    assert shares[-1] == pytest.approx((k[-4096:].sum() / k.sum()).item(), rel=1e-4)


def _case() -> tuple[Tensor, Tensor, Tensor]:
    """Rows: whole, half masked, not active, empty mask, fractions."""
    mask = torch.ones(5, 9)
    mask[1, 4:], mask[3], mask[4] = 0, 0, torch.linspace(0, 1, 9)
    return panw_weights(SMALL, 0, 3, 0.5), mask, torch.tensor([True, True, False, True, True])


def _by_loops(normaliser: str, constant: float | None) -> list[list[float]]:
    k, mask, active = (x.tolist() for x in _case())
    weight = [[kt * m for kt, m in zip(k, row, strict=True)] if on else [0.0] * 9 for row, on in zip(mask, active, strict=True)]
    total = sum(map(sum, weight))
    divisors = {
        "branch": [3 * sum(row) or 1.0 for row in weight],  # three branches are active and not empty
        "batch": [total] * 5,
        "constant": [(constant or 0.0) * 4] * 5,
        "none": [4.0] * 5,
    }[normaliser]
    return [[w / divisor for w in row] for row, divisor in zip(weight, divisors, strict=True)]


NORMALISERS = [("branch", None), ("batch", None), ("constant", 7.0), ("none", None)]


@pytest.mark.parametrize(("normaliser", "constant"), NORMALISERS)
def test_row_weights(normaliser: str, constant: float | None) -> None:
    W = row_weights(*_case(), normaliser, constant)
    torch.testing.assert_close(W, torch.tensor(_by_loops(normaliser, constant)))
    if normaliser in ("branch", "batch"):
        assert W.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("normaliser", ["branch", "batch", "none"])
def test_a_batch_without_active_rows_weighs_nothing(normaliser: str) -> None:
    W = row_weights(torch.ones(4), torch.ones(2, 4), torch.zeros(2, dtype=torch.bool), normaliser)
    assert (W == 0).all()


def test_errors_name_value_and_range() -> None:
    k, mask, active = _case()
    with pytest.raises(ValueError, match=r"alpha must be >= 0 and finite, got -0.5"):
        panw_weights(SMALL, 0, 3, -0.5)
    with pytest.raises(ValueError, match=r"0 <= start < stop <= 3, got \[2, 4\)"):
        scale_shares(square((1, 2, 4)), 2, 4, 0.6)
    with pytest.raises(ValueError, match="constant belongs to normaliser 'constant' alone, got None for 'constant'"):
        row_weights(k, mask, active, "constant")
    with pytest.raises(ValueError, match=r"constant belongs to normaliser 'constant' alone, got 3.0 for 'batch'"):
        row_weights(k, mask, active, "batch", 3.0)
    with pytest.raises(ValueError, match=r"constant must be > 0, got 0.0"):
        row_weights(k, mask, active, "constant", 0.0)


LARGE = Schedule(((1, 1), (4, 4), (16, 16), (64, 64)))


@pytest.mark.parametrize("alpha", [17.0, 40.0, 150.0, 1e4, 1e308])
@pytest.mark.parametrize("normaliser", ["branch", "batch"])
def test_no_alpha_takes_the_weight_of_a_suffix(alpha: float, normaliser: str) -> None:
    """At 17 every weight of scales of 256 tokens and more was 0: only relative weights count, and the coarsest scale has them."""
    L = 256 + 4096
    mask, active = torch.ones(2, L), torch.ones(2, dtype=torch.bool)
    mask[1, :256] = 0  # leaves the finest scale alone
    W = row_weights_of_logs(log_panw_weights(LARGE, 2, 4, alpha), mask, active, normaliser)  # type: ignore[arg-type]
    assert W.isfinite().all()
    torch.testing.assert_close(W.sum(), torch.tensor(1.0))
    of_coarse = 0.5 if normaliser == "branch" else 1.0
    assert W[0, :256].sum().item() == pytest.approx(of_coarse, rel=1e-4)
    assert W[1, 256:].sum().item() == pytest.approx(1 - of_coarse, rel=1e-4, abs=1e-6)
    shares = scale_shares(LARGE, 2, 4, alpha)
    assert shares == pytest.approx([1.0, 0.0], abs=1e-4)
    k = panw_weights(LARGE, 2, 4, alpha)
    assert k.isfinite().all()
    assert k[0] == 1


def test_moderate_weights_are_what_they_were() -> None:
    for alpha in (0.0, 0.6, 1.0, 3.0):
        k, logs = panw_weights(LARGE, 0, 4, alpha), log_panw_weights(LARGE, 0, 4, alpha)
        expected = torch.cat([torch.full((n,), float(n) ** -alpha) for n in LARGE.lengths])
        torch.testing.assert_close(k, expected, rtol=1e-7, atol=0)
        mask, active = torch.rand(3, len(k)), torch.tensor([True, False, True])
        for normaliser, constant in NORMALISERS:
            of_logs = row_weights_of_logs(logs, mask, active, normaliser, constant)  # type: ignore[arg-type]
            assert torch.equal(of_logs, row_weights(k, mask, active, normaliser, constant))  # type: ignore[arg-type]
