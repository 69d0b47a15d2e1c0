"""Scores the images that are there while the next ones are being sampled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt, Scores

Part = tuple[Tensor, Sequence[Prompt]]


class BackgroundScoring:
    """Rewards in a thread beside the sampler; never two calls at a time, and parts in their order.

    The last part is scored by the caller's own thread, since nothing is sampled meanwhile. A single part is scored there too.

    Args:
        rewards: what scores the images.
    """

    def __init__(self, rewards: WeightedRewards) -> None:
        self.rewards = rewards
        self.seconds = 0.0
        """Time that rewards have taken so far, whether or not sampling went on meanwhile."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")
        self._started: list[Future[dict[str, Scores]]] = []
        self._last: Part | None = None

    def __enter__(self) -> BackgroundScoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Wait for the call that is running; start no other."""
        self._thread.shutdown(cancel_futures=True)

    def add(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> None:
        """Take images that have been sampled; more may come."""
        if self._last is not None:
            self._started.append(self._thread.submit(self._score, *self._last))
        self._last = images, prompts

    def result(self) -> dict[str, Scores]:
        """What each reward says of all images, in the order in which they were added.

        Raises:
            RewardError: see `WeightedRewards.score_all`.
        """
        if self._last is None:
            raise RuntimeError("no images were added")
        parts = [future.result() for future in self._started]
        parts.append(self._score(*self._last))
        return {name: Scores.join([part[name] for part in parts]) for name in parts[0]}

    def _score(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Scores]:
        start = time.perf_counter()
        scores = self.rewards.score_all(images, prompts)
        self.seconds += time.perf_counter() - start
        return scores
