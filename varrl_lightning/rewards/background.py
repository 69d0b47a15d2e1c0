"""Scores the images that are there while the next ones are being sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.groups import PartialScores, equal_prompts
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt, Scores

Task = Callable[[], None]
Tell = Callable[[int, int], None]
"""Is told how many images are scored, and of how many."""


class BackgroundScoring:
    """Rewards in a thread beside the sampler; never two calls at a time, and parts in their order.

    A reward that compares the images of a group is called with each group as soon as its last image is there. What is still to do
    when the last image has come is done by the caller's own thread, since nothing is sampled meanwhile. All of it is, where the
    default dtype is not float32: that is a setting of all threads, and the sampler needs another one than the rewards.

    Args:
        rewards: what scores the images.
        groups: the images of each whole group, by the number of its prompt; images are counted in the order in which they are
            added. By default the groups are the images of one prompt that follow each other.
    """

    def __init__(self, rewards: WeightedRewards, groups: Mapping[int, range] | None = None) -> None:
        self.rewards = rewards
        self.seconds = 0.0
        """Time that rewards have taken so far, whether or not sampling went on meanwhile."""
        self._waiting: list[tuple[int, range]] | None = []
        """Groups that are not complete, with their numbers; None where they are known by their prompts, at the end."""
        if rewards.whole_groups:
            self._waiting = None if groups is None else sorted(groups.items(), key=lambda item: item[1].start)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")
        self._started: list[Future[None]] = []
        self._next: list[Task] = []
        self._added = 0
        self._scored = self._to_score = 0
        self._open: list[tuple[int, Tensor, Sequence[Prompt]]] = []
        """Parts that a group may need which is not complete, each with the number of its first image."""
        self._parts: list[dict[str, Scores]] = []
        self._groups: dict[int, dict[str, Scores]] = {}

    def __enter__(self) -> BackgroundScoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Wait for the call that is running; start no other."""
        self._thread.shutdown(cancel_futures=True)

    def add(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> None:
        """Take images that have been sampled; more may come."""
        if torch.get_default_dtype() is torch.float32:
            self._started += [self._thread.submit(task) for task in self._next]
            self._next = []
        self._next.append(partial(self._score_part, images, prompts))
        if self.rewards.whole_groups:
            self._open.append((self._added, images, prompts))
        else:
            self._to_score += len(images)
        self._added += len(images)
        self._next += self._complete_groups()

    def result(self) -> dict[str, Scores]:
        """What each reward says of all images, in the order in which they were added.

        Raises:
            RewardError: see `score_images`.
        """
        if self._waiting is None:
            prompts = [prompt for _, _, of_part in self._open for prompt in of_part]
            self._waiting = list(enumerate(equal_prompts(prompts)))
            self._next += self._complete_groups()
        found = self.partial_result()
        compared = [found.groups[number] for number in sorted(found.groups)]
        return {
            name: found.apart[name] if name in found.apart else Scores.join([group[name] for group in compared])
            for name in self.rewards.terms
        }

    def partial_result(self, tell: Tell | None = None) -> PartialScores:
        """What each reward says: of all images, or of the whole groups alone where it compares their images.

        Args:
            tell: is told how far the rewards are, in the caller's thread; whole groups count where a reward compares images.

        Raises:
            RewardError: see `score_images`.
        """
        if not self._added:
            raise RuntimeError("no images were added")
        work: list[Task] = [*(future.result for future in self._started), *self._next]
        for do in (None, *work):
            if do is not None:
                do()
            if tell is not None:
                tell(self._scored, self._to_score)
        self._started, self._next = [], []
        apart = {name: Scores.join([part[name] for part in self._parts]) for name in self._parts[0]}
        return PartialScores(apart, self._groups)

    def _complete_groups(self) -> list[Task]:
        """Tasks for the groups whose last image has come; parts that no other group needs are forgotten."""
        tasks: list[Task] = []
        while self._waiting and self._waiting[0][1].stop <= self._added:
            number, group = self._waiting.pop(0)
            self._to_score += len(group)
            pieces = []
            for first, images, prompts in self._open:
                rows = slice(max(group.start - first, 0), max(group.stop - first, 0))
                pieces.append((images[rows], prompts[rows]))
            tasks.append(partial(self._score_group, number, [piece for piece in pieces if piece[1]]))
        if self._waiting is not None:
            start = self._waiting[0][1].start if self._waiting else self._added
            self._open = [(first, images, prompts) for first, images, prompts in self._open if first + len(images) > start]
        return tasks

    def _score_part(self, images: Tensor, prompts: Sequence[Prompt]) -> None:
        start = time.perf_counter()
        if self.rewards.whole_groups:
            scores = self.rewards.score_part(images, prompts, whole_group=False)
        else:
            scores = self.rewards.score_all(images, prompts)
            self._scored += len(images)
        self._parts.append(scores)
        self.seconds += time.perf_counter() - start

    def _score_group(self, number: int, pieces: Sequence[tuple[Tensor, Sequence[Prompt]]]) -> None:
        start = time.perf_counter()
        images = pieces[0][0] if len(pieces) == 1 else torch.cat([images for images, _ in pieces])
        prompts = [prompt for _, of_piece in pieces for prompt in of_piece]
        self._groups[number] = self.rewards.score_part(images, prompts, whole_group=True)
        self._scored += len(images)
        self.seconds += time.perf_counter() - start
