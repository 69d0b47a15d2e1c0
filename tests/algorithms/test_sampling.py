import math

import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.sampling import guided_logits, inverse_cdf, truncate


def _support(logits: list[float], top_k: int, top_p: float) -> set[int]:
    order = sorted(range(len(logits)), key=lambda v: -logits[v])
    if 0 < top_k < len(logits):
        order = [v for v in order if logits[v] >= logits[order[top_k - 1]]]
    total = sum(math.exp(logits[v]) for v in order)
    kept, mass = [], 0.0
    for v in order:
        kept.append(v)
        mass += math.exp(logits[v]) / total
        if mass >= top_p:
            break
    return set(kept)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 7, 100])
def test_truncation_by_loops(top_k: int, top_p: float, temperature: float) -> None:
    torch.manual_seed(5)
    logits = torch.randn(3, 4, 7) * 2
    out = truncate(logits, top_k, top_p, temperature)
    for row, scaled in zip(out.flatten(0, 1), (logits / temperature).flatten(0, 1), strict=True):
        kept = row.isfinite()
        assert set(kept.nonzero().flatten().tolist()) == _support(scaled.tolist(), top_k, top_p)
        assert torch.equal(row[kept], scaled[kept])
        assert (row[~kept] == -math.inf).all()


def test_ties_at_the_kth_are_kept() -> None:
    assert truncate(torch.tensor([2.0, 1.0, 1.0, 0.0]), top_k=2).isfinite().tolist() == [True, True, True, False]


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    logits = torch.tensor([0.25, 0.5, 0.125, 0.125]).log()
    assert truncate(logits, top_p=0.5).isfinite().tolist() == [False, True, False, False]
    assert truncate(logits, top_p=0.51).isfinite().tolist() == [True, True, False, False]
    assert truncate(logits, top_p=0.8).isfinite().sum() == 3, "one of two equals is enough"


def test_top_p_counts_the_mass_that_top_k_leaves() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert truncate(logits, top_k=2, top_p=0.55).isfinite().sum() == 1  # .4 of .7 is .57
    assert truncate(logits, top_p=0.55).isfinite().sum() == 2


def test_the_kept_token_is_always_in_the_support() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(4, 1)
    support = truncate(logits, top_k=2, keep=torch.arange(4)).isfinite()
    assert support.tolist() == [[True, True, v == 2, v == 3] for v in range(4)]


def test_bits_are_tokens_of_a_vocabulary_of_two() -> None:
    torch.manual_seed(6)
    logits, bits = torch.randn(2, 3, 5, 2), torch.randint(2, (2, 3, 5))
    out = truncate(logits, top_k=1, keep=bits)
    expected = (logits == logits.amax(-1, keepdim=True)) | torch.nn.functional.one_hot(bits, 2).bool()
    assert torch.equal(out.isfinite(), expected)


def test_log_probabilities_have_a_gradient_through_the_truncation() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
    truncate(logits, top_k=2).log_softmax(-1)[0].backward()
    p = torch.tensor([2.0, 1.0]).softmax(-1)
    torch.testing.assert_close(logits.grad, torch.tensor([1 - p[0], -p[1], 0.0]))


def test_guidance_forms() -> None:
    c, u = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(guided_logits(c, u, 4.0, "constant", 3, 10), u + 4.0 * (c - u))
    torch.testing.assert_close(guided_logits(c, u, 1.0, "constant", 3, 10), c)
    torch.testing.assert_close(guided_logits(c, u, 4.0, "ramp", 0, 10), c)
    torch.testing.assert_close(guided_logits(c, u, 4.0, "ramp", 9, 10), c + 4.0 * (c - u))
    torch.testing.assert_close(guided_logits(c, u, 4.0, "ramp", 3, 10), c + 4.0 * 3 / 9 * (c - u))
    torch.testing.assert_close(guided_logits(c, u, 4.0, "ramp", 0, 1), c)


def test_inverse_cdf_gives_every_token_its_length() -> None:
    """The numbers (i + 1/2) / 1000 are spread evenly, so each token is selected 1000 p times, in order."""
    p = torch.tensor([0.1, 0.0, 0.55, 0.35, 0.0])
    u = (torch.arange(1000) + 0.5) / 1000
    token = inverse_cdf(3 * p.expand(1000, 5), u)
    assert token.bincount(minlength=5).tolist() == [100, 0, 550, 350, 0]
    assert (token.diff() >= 0).all()


def test_a_token_begins_where_the_one_before_ends() -> None:
    p = torch.tensor([0.0, 0.125, 0.0, 0.5, 0.375])
    assert inverse_cdf(p.expand(8, 5), torch.arange(8) / 8).tolist() == [1, 3, 3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_of_probability_0_is_never_selected(dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    largest = math.nextafter(1.0, 0.0) if dtype == torch.float64 else 1 - 2.0**-24
    p = torch.rand(200, 50, dtype=dtype) * (torch.rand(200, 50) > 0.7)
    p[:, 0], p[:, -1], p[:, 20] = 0, 0, 1e-30
    p = p / p.sum(-1, keepdim=True)
    for u in (0.0, 0.5, largest, 1.0):
        token = inverse_cdf(p, torch.full((200,), u, dtype=dtype))
        assert (p.gather(-1, token[:, None]) > 0).all()


def test_rounding_in_a_parallel_sum_cannot_select_an_impossible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan on an accelerator may step up across a token of probability 0."""
    monkeypatch.setattr(Tensor, "cumsum", lambda self, dim: torch.tensor([[0.3, 0.3 + 1e-9, 1.0]], dtype=self.dtype))
    assert inverse_cdf(torch.tensor([[0.3, 0.0, 0.7]]), torch.tensor([0.3 + 5e-10], dtype=torch.float64)).item() == 2


def test_errors_name_value_and_range() -> None:
    logits = torch.zeros(2)
    with pytest.raises(ValueError, match=r"top_k must be 0 \(off\) or positive, got -1"):
        truncate(logits, top_k=-1)
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], got 0"):
        truncate(logits, top_p=0.0)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        truncate(logits, temperature=0.0)
    with pytest.raises(ValueError, match=r"scale must be in \[0, 10\), got 10"):
        guided_logits(logits, logits, 2.0, "ramp", 10, 10)
