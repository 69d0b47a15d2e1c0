import pytest
import torch

from varrl_lightning.algorithms.noise import fold, row_key, uniforms

WORD = 2**64
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def _splitmix64(seed: int, count: int) -> list[int]:
    """Steele, Lea and Flood's generator on unsigned integers of any length."""
    return [_mix((seed + i * 0x9E3779B97F4A7C15) % WORD) for i in range(1, count + 1)]


def _fold(key: int, index: int) -> int:
    return _mix((key + _mix((index + 1) * 0x9E3779B97F4A7C15 % WORD)) % WORD)


def test_the_reference_is_splitmix64() -> None:
    """The published outputs of seed 1234567."""
    assert _splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("device", DEVICES)
def test_int64_arithmetic_is_that_of_unsigned_words(device: str) -> None:
    keys = torch.tensor([0, -1, 2**63 - 1, -(2**63), row_key(0, 0, "a")], device=device)
    assert [k % WORD for k in fold(keys, 3).tolist()] == [_fold(k % WORD, 3) for k in keys.tolist()]
    index = torch.arange(5, device=device)
    assert [k % WORD for k in fold(keys, index).tolist()] == [_fold(k % WORD, i) for i, k in enumerate(keys.tolist())]
    drawn = uniforms(keys, 2, 6).tolist()
    for key, row in zip(keys.tolist(), drawn, strict=True):
        stream = _fold((key % WORD) ^ 0x5851F42D4C957F2D, 2)
        assert row == [(x >> 40) / 2**24 for x in _splitmix64(stream, 6)]


def test_row_keys_do_not_change() -> None:
    """Pinned: a run that is resumed by a later version draws what it would have drawn."""
    assert row_key(1, 2, "a cat") == -8590211128225287747
    assert len({row_key(s, u, p) for s in range(3) for u in range(3) for p in ("a", "b", "12", "1")}) == 36
    assert row_key(1, 11, "x") != row_key(11, 1, "x")


def test_a_row_does_not_depend_on_the_others_nor_on_the_count() -> None:
    keys = torch.tensor([row_key(0, 0, p) for p in "abcd"])
    whole = uniforms(keys, 1, 8)
    assert torch.equal(uniforms(keys[2:3], 1, 8), whole[2:3])
    assert torch.equal(uniforms(keys, 1, 5), whole[:, :5])


def test_children_of_all_rows_are_distinct_and_apart_from_draws() -> None:
    keys = torch.tensor([row_key(0, u, "p") for u in range(50)])
    children = torch.stack([fold(keys, i) for i in range(50)])
    grandchildren = fold(children.flatten(), 0)
    assert torch.cat([keys, children.flatten(), grandchildren]).unique().numel() == 50 + 2500 + 2500
    draws = torch.cat([uniforms(keys, s, 4).flatten() for s in range(4)] + [uniforms(children[3], 3, 4).flatten()])
    assert draws.unique().numel() > 0.99 * draws.numel()


def test_uniform_and_independent_between_tokens_rows_and_scales() -> None:
    keys = torch.tensor([row_key(3, 0, str(i)) for i in range(2000)])
    draws = torch.stack([uniforms(keys, s, 50) for s in range(3)])
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    # 300,000 draws in 100 bins of about 3000: the chi-square statistic has mean 99 and deviation 14.
    counts = torch.histc(draws, 100, 0, 1)
    assert ((counts - 3000).square() / 3000).sum().item() == pytest.approx(99, abs=5 * 14)
    x = draws.double() - 0.5
    for a, b in ((x[:, :, 1:], x[:, :, :-1]), (x[:, 1:], x[:, :-1]), (x[1:], x[:-1])):
        assert abs((a * b).mean().item() * 12) < 5 / a.numel() ** 0.5


def test_float32_never_rounds_up_to_1() -> None:
    assert uniforms(torch.arange(2000), 0, 2000).max().item() <= 1 - 2.0**-24
