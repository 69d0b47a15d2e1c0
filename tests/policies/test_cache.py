"""Keys and values are written in place, and nothing that anyone can read tells of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PROMPTS, tiny_loader, tiny_module, tiny_trainer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import families
from tests.families import Made
from varrl_lightning.policies import cache as module
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.cache import Cache, Past, Room, appended
from varrl_lightning.policies.layers import scalewise_attention
from varrl_lightning.policies.lettering import LetteringPolicy, LetteringTransformer
from varrl_lightning.policies.state import Cond, State
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Sampling


@pytest.fixture(scope="module")
def make(weights_folder: Path) -> Callable[[str, bool], Made]:
    @cache
    def made(family: str, adapted: bool) -> Made:
        policy, cond = families.FAMILIES[family](weights_folder)
        return families.disturbed(policy) if adapted else policy, cond

    return made


def concatenating(patch: pytest.MonkeyPatch) -> None:
    """The same cache without rooms: forks copy at once, and every scale concatenates all keys and values anew."""

    def pick(self: Cache, f: Callable[[Tensor], Tensor]) -> Cache:
        layers, cross = ([(f(key), f(value)) for key, value in pairs] for pairs in (self.layers, self.cross))
        return Cache(layers, cross, None if self.condition is None else f(self.condition))

    patch.setattr(Cache, "map", pick)
    patch.setattr(Cache, "expecting", lambda self, positions: self)


def tree(policy: VARPolicy, cond: Cond, sampling: Sampling) -> list[State]:
    """States that share a past: siblings, forks of forks, an only child, chosen rows, and one that is drawn from twice."""
    start = policy.sample(policy.begin(cond, sampling, torch.arange(len(cond))), 1)
    deeper = policy.sample(start.fork(2), 2)
    family = [deeper, deeper.children([3, 0], [1, 2]), deeper.fork(1).children([1, 1], [0, 1]), deeper.fork(1), deeper]
    return [policy.sample(state, until) for state, until in zip(family, (3, 4, 3, 3, len(cond.schedule)), strict=True)]


def assert_same(found: list[State], wanted: list[State]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert families.same(one.tokens, other.tokens)
        assert families.same(one.log_probs, other.log_probs)
        assert torch.equal(one.latent, other.latent)


class Rooms:
    """All rooms that were made, while they exist."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.positions: list[int] = []
        self.rooms: list[weakref.ref[Room]] = []
        self.storages: list[StorageWeakRef] = []
        rooms = self

        class Noted(Room):
            def __init__(self, positions: int, key: Tensor, value: Tensor) -> None:
                super().__init__(positions, key, value)
                rooms.positions.append(positions)
                rooms.rooms.append(weakref.ref(self))
                rooms.storages += [StorageWeakRef(x.untyped_storage()) for x in self.buffers]

        patch.setattr(module, "Room", Noted)

    def alive(self) -> int:
        gc.collect()
        return sum(r() is not None for r in self.rooms) + sum(not storage.expired() for storage in self.storages)


@pytest.mark.parametrize(("adapted", "cfg"), [(False, None), (False, 2.0), (True, 2.0)], ids=["", "guided", "lora"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_draw_is_bit_for_bit_that_of_concatenation(
    family: str, adapted: bool, cfg: float | None, make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, cond = make(family, adapted)
    rooms = Rooms(monkeypatch)
    drawn = tree(policy, cond, Sampling(cfg=cfg))
    assert bool(rooms.positions) == policy.scales_attend
    with monkeypatch.context() as patch:
        concatenating(patch)
        made = len(rooms.positions)
        wanted = tree(policy, cond, Sampling(cfg=cfg))
        assert len(rooms.positions) == made
    assert_same(drawn, wanted)


@pytest.mark.parametrize("family", [name for name in families.FAMILIES if name != "switti"])
def test_nobody_sees_what_another_writes(family: str, make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other continuations of every cache, of other latents, are run before, or after, the one that counts."""
    policy, cond = make(family, False)
    wanted = tree(policy, cond, Sampling(cfg=2.0))
    plain, rooms = policy.scale_features, Rooms(monkeypatch)

    def disturbed(inputs: Any, cache: Cache, latents: list[Tensor], first: int, schedule: Schedule) -> Any:
        others = [[x + 1 for x in latents]] * 2
        order = [*others, latents] if first % 2 else [latents, *others]
        found = [plain(inputs, cache, each, first, schedule) for each in order]
        return found[-1 if first % 2 else 0]

    monkeypatch.setattr(policy, "scale_features", disturbed)
    drawn = tree(policy, cond, Sampling(cfg=2.0))
    assert rooms.positions
    assert_same(drawn, wanted)


@pytest.mark.parametrize(("family", "text"), [("lettering", 17), ("var", 0), ("llm_prefix", 5)])
def test_room_is_made_once_for_all_scales_that_are_read_again(
    family: str, text: int, make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """llm_prefix: the longest text has five tokens."""
    policy, cond = make(family, False)
    rooms, offsets, depth = Rooms(monkeypatch), cond.schedule.offsets, len(cond.schedule)
    state = policy.sample(policy.begin(cond, Sampling(cfg=2.0), torch.arange(len(cond))), 2)
    layers = len(state.cache.layers)
    assert rooms.positions == [text + offsets[2]] * layers
    assert [x.shape[2] for layer in state.cache.layers for x in layer] == [text + offsets[2]] * 2 * layers
    forked = state.fork(3)
    assert len(rooms.positions) == layers  # a fork alone copies nothing
    assert {len(x) for layer in forked.cache.layers for x in layer} == {2 * 3 * len(cond)}
    policy.sample(forked, depth)
    assert rooms.positions[layers:] == [text + offsets[depth - 1]] * layers


class Live(TorchDispatchMode):
    """Bytes of the tensors that exist."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = f(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for storage in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)):
            if storage._cdata not in given and storage._cdata not in self.bytes:
                self.bytes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _gone(self, storage: int) -> None:
        self.now -= self.bytes.pop(storage, 0)


def test_no_two_caches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of drawing after a fork is the grown cache and what one layer needs; by concatenation it is much more."""
    torch.manual_seed(0)
    policy = LetteringPolicy(LetteringTransformer(width=128, depth=48))
    cond = policy.encode_prompts(PROMPTS[:1])
    state = policy.sample(policy.begin(cond, Sampling(), torch.arange(1)), 3)

    def peak() -> int:
        with Live() as live:
            policy.sample(state.fork(4), 5)
        return live.peak

    one = 4 * 48 * 2 * 128 * 4 * (17 + cond.schedule.offsets[5])  # rows, layers, keys and values, width, bytes, positions
    found = peak()
    concatenating(monkeypatch)
    assert one < found < 1.25 * one
    assert peak() > 1.5 * one


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_everything_is_gone_before_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither rooms nor their storages exist when teacher forcing begins."""
    rooms, counts = Rooms(monkeypatch), []
    trained = tiny_module(sampling=Sampling(cfg=2.0, top_k=8))
    trained.policy.register_forward_pre_hook(lambda *_: counts.append(rooms.alive()))
    tiny_trainer(max_steps=1).fit(trained, tiny_loader())
    assert rooms.positions
    assert counts
    assert set(counts) == {0}


def pair(n: int, rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, n, 4, generator=draw), torch.randn(rows, 3, n, 4, generator=draw)


def joined(*pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    keys, values = zip(*pairs, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def is_pair(found: Any, wanted: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def storage(past: Any) -> int:
    return past[0].untyped_storage().data_ptr()


def roomy(n: int, spare: int) -> Past:
    return replace(Past(*pair(n)), spare=spare)


@torch.no_grad()
def test_the_first_who_appends_writes_in_place_and_others_move() -> None:
    a, b, c, d = pair(2), pair(3, seed=1), pair(3, seed=2), pair(1, seed=3)
    together, grown = roomy(2, 4).append(*b)
    assert isinstance(grown, Past)
    assert grown.room is not None
    assert [x.shape[2] for x in grown.room.buffers] == [6, 6]
    first, one = grown.append(*d)
    other, two = grown.append(*pair(1, seed=4))
    assert storage(one) == storage(grown)
    assert storage(two) != storage(grown)
    assert is_pair(together, joined(a, b))
    assert is_pair(first, joined(a, b, d))
    assert is_pair(one, first)
    assert is_pair(two, other)
    assert is_pair(other, joined(a, b, pair(1, seed=4)))
    full, three = one.append(*c)  # type: ignore[union-attr]
    assert storage(three) != storage(one)
    assert is_pair(full, joined(a, b, d, c))
    assert is_pair(grown, joined(a, b))


def test_gradients_pass_and_nothing_is_written_under_them() -> None:
    with torch.no_grad():
        grown = roomy(2, 8).append(*pair(3, seed=1))[1]
    assert isinstance(grown, Past)
    assert grown.room is not None
    key, value = (x.requires_grad_() for x in pair(2, seed=5))
    q = pair(2, seed=6)[0]
    found, kept = scalewise_attention(q, key, value, [1, 1], grown)
    gradients = torch.autograd.grad(found.square().sum(), (key, value))
    wanted, _ = scalewise_attention(q, key, value, [1, 1], joined(pair(2), pair(3, seed=1)))
    assert torch.equal(found, wanted)
    assert is_pair(gradients, torch.autograd.grad(wanted.square().sum(), (key, value)))
    assert isinstance(kept, tuple)
    assert grown.room.filled == 5


@torch.no_grad()
def test_another_dtype_is_joined_as_torch_does() -> None:
    grown = roomy(2, 8).append(*pair(3, seed=1))[1]
    half = tuple(x.bfloat16() for x in pair(2, seed=5))
    found, _ = grown.append(*half)  # type: ignore[union-attr]
    assert is_pair(found, joined(pair(2), pair(3, seed=1), half))  # type: ignore[arg-type]
    assert found[0].dtype == torch.float32


def test_what_inference_mode_made_is_not_written_outside_of_it() -> None:
    with torch.inference_mode():
        grown = roomy(2, 8).append(*pair(3, seed=1))[1]
    with torch.no_grad():
        found, moved = grown.append(*pair(2, seed=5))  # type: ignore[union-attr]
    assert is_pair(found, joined(pair(2), pair(3, seed=1), pair(2, seed=5)))
    assert storage(moved) != storage(grown)


@torch.no_grad()
def test_the_last_scale_reads_everything_and_is_not_kept() -> None:
    (layer,) = Cache([pair(2)]).expecting(0).layers
    found, kept = appended(layer, *pair(3, seed=1))
    assert is_pair(found, joined(pair(2), pair(3, seed=1)))
    assert kept is layer
    assert is_pair(kept, pair(2))


@torch.no_grad()
def test_rows_are_taken_when_they_are_read_and_one_after_the_other() -> None:
    calls = []

    def taking(*index: int) -> Callable[[Tensor], Tensor]:
        def take(x: Tensor) -> Tensor:
            calls.append(index)
            return x[list(index)]

        return take

    key, value = pair(2, rows=4)
    cached = Cache([(key, value)], [(key, value)], key)
    (layer,) = (mapped := cached.map(taking(3, 1, 1))).map(taking(2, 0)).layers
    assert calls == [(3, 1, 1)] * 3 + [(2, 0)] * 3  # cross-attention and condition alone
    assert is_pair(mapped.cross[0], (key[[3, 1, 1]], value[[3, 1, 1]]))
    calls.clear()
    found, grown = appended(layer, *pair(1, seed=1))
    assert calls == [(3, 1, 1), (2, 0)] * 2
    assert is_pair(found, joined((key[[1, 3]], value[[1, 3]]), pair(1, seed=1)))
    assert is_pair(grown, found)
    assert len(calls) == 4
    assert is_pair(mapped.layers[0], (key[[3, 1, 1]], value[[3, 1, 1]]))
