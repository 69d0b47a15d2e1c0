"""What an observer of a training step is told; five steps of the tiny model."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import SCHEDULE, LeftBright, M, tiny_loader, tiny_module, tiny_trainer, weights
from varrl_lightning.module import VARGRPO

Event = tuple[str, int, int]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:You defined a `validation_step`")


class WholeGroups(LeftBright):
    whole_groups = True


def trained(*, observed: bool, **options: object) -> tuple[VARGRPO, list[Event]]:
    events: list[Event] = []
    module = tiny_module(micro_batch_size=3, alternation=("prefix",), **options)
    if observed:
        module.observer = lambda *event: events.append(event)  # type: ignore[assignment]
    tiny_trainer(max_steps=module.updater.updates_per_rollout).fit(module, tiny_loader())
    return module, events


def counts(part: str, events: list[Event]) -> list[tuple[int, int]]:
    return [(done, of) for name, done, of in events if name == part]


def test_it_is_told_scales_of_all_chunks_then_images_then_micro_batches_and_nothing_changes() -> None:
    """2 prompts of 4 branches with 2 continuations, 4 images at a time: 4 chunks."""
    options = {"images_at_once": 4, "updates_per_rollout": 2}
    module, events = trained(observed=True, **options)
    assert list(dict.fromkeys(name for name, *_ in events)) == ["rollout", "reward", "update"]
    scales = 4 * len(SCHEDULE)
    assert counts("rollout", events) == [(done, scales) for done in range(scales + 1)]
    scored = counts("reward", events)
    assert scored[-1] == (16, 16)
    assert scored == sorted(scored)
    assert {of for _, of in scored} == {16}
    assert counts("update", events) == [(done, 6) for done in range(7)], "8 branches in threes, twice"
    unobserved, nothing = trained(observed=False, **options)
    assert not nothing
    assert torch.equal(weights(module), weights(unobserved))


def test_drafts_need_no_later_scales_and_are_counted_when_they_are_scored_beside_images() -> None:
    _, events = trained(observed=True, num_continuations=0)
    assert counts("rollout", events) == [(done, M) for done in range(M + 1)]
    _, events = trained(observed=True, num_continuations=0, calibrate_every=1)
    assert counts("rollout", events)[-1] == (len(SCHEDULE), len(SCHEDULE))
    assert [count for count in counts("reward", events) if count[0]] == [(16, 16), (8, 8)], "of whole images, then of their drafts"


def test_images_of_whole_groups_are_counted_once_their_group_is_scored() -> None:
    _, events = trained(observed=True, reward=WholeGroups(), images_at_once=4)
    scored = counts("reward", events)
    assert scored[-1] == (16, 16)
    assert {done for done, _ in scored} <= {0, 8, 16}
