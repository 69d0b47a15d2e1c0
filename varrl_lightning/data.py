"""Feeds prompts to a Trainer, in an order that a resumed run continues."""

from __future__ import annotations

import itertools
import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from varrl_lightning.prompts.benchmarks import load_benchmark
from varrl_lightning.prompts.files import OverlapError, PromptFileError, check_disjoint, load_prompts
from varrl_lightning.prompts.sets import listed, shared_words
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt

__all__ = [
    "EvaluationBatches",
    "OverlapError",
    "PromptDataModule",
    "PromptFileError",
    "TrainingBatches",
    "check_disjoint",
    "load_prompts",
]

# The batches below are not DataLoaders, whose sampler Lightning may replace; there is nothing to load.


def _by_size(prompts: Sequence[Prompt]) -> dict[tuple[int, int] | None, list[Prompt]]:
    sizes: dict[tuple[int, int] | None, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        sizes[prompt.size].append(prompt)
    return sizes


class EvaluationBatches:
    """All prompts once, in the order of the file, in batches of one image size each."""

    def __init__(self, prompts: Sequence[Prompt], batch_size: int) -> None:
        sizes = _by_size(prompts).values()
        self.batches = [part[i : i + batch_size] for part in sizes for i in range(0, len(part), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Prompt]]:
        return iter(self.batches)


class TrainingBatches:
    """An endless stream of batches of one image size each; batch i is a pure function of (seed, i).

    A pass over the prompts drops the last, incomplete batch of each size; which prompts are dropped changes with each pass.
    Iterating yields `len(self)` batches, one pass, from the current position: an epoch may begin anywhere in the stream.

    Args:
        prompts: the prompts to train on.
        batch_size: prompts in a batch.
        seed: seed of the order; None keeps the order of the prompts.
        processed: returns the number of batches that training has finished, counted from any start. Without it, or where it
            returns None, a batch counts as soon as it is delivered, although training may be interrupted within its step.

    Raises:
        ValueError: when a size has fewer prompts than a batch: they would never be seen.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        batch_size: int,
        seed: int | None = 0,
        processed: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.prompts, self.batch_size, self.seed = list(prompts), batch_size, seed
        for size, members in _by_size(prompts).items():
            if len(members) < batch_size:
                of_size = f" of size {size}" if size else ""
                raise ValueError(
                    f"batch_size is {batch_size}, but there are only {len(members)} training prompts{of_size}, and a "
                    "batch holds one size. Lower batch_size or add prompts."
                )
        self._length = sum(len(members) // batch_size for members in _by_size(prompts).values())
        self._processed = processed
        self._next = 0
        self._processed_at_delivery: int | None = None

    @property
    def position(self) -> int:
        """Batches done so far, over all passes: the place to resume from after an interruption."""
        at_delivery = self._processed_at_delivery
        in_work = at_delivery is not None and self._processed() == at_delivery
        return self._next - in_work

    def epoch(self, number: int) -> list[list[Prompt]]:
        """All batches of one pass over the prompts."""
        # Text seeds are hashed by random itself, alike on every platform and version.
        shuffle = (lambda _: None) if self.seed is None else random.Random(f"{self.seed}, {number}").shuffle
        batches = []
        for members in _by_size(self.prompts).values():
            shuffle(members)
            full = len(members) - len(members) % self.batch_size
            batches += [members[i : i + self.batch_size] for i in range(0, full, self.batch_size)]
        shuffle(batches)
        return batches

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[Prompt]]:
        self._next = self.position
        number, index = divmod(self._next, len(self))
        batches = self.epoch(number)[index:] + self.epoch(number + 1)[:index]
        for batch in batches:
            self._next += 1
            self._processed_at_delivery = self._processed()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, and the values that identify the stream."""
        return {"position": self.position, "seed": self.seed, "batch_size": self.batch_size, "prompts": len(self.prompts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved position; warn when it belongs to another stream."""
        self._next, self._processed_at_delivery = state["position"], None
        changed = [f"{k} was {v} and is {self.state_dict()[k]}" for k, v in state.items() if self.state_dict()[k] != v]
        if changed:
            warnings.warn(f"the order of the training prompts changes from here on: {'; '.join(changed)}", stacklevel=2)


class PromptDataModule(LightningDataModule):
    """Prompt files for fit, validate, test and predict; a batch is a `list[Prompt]` of one image size.

    Every process gets every batch in full, and the module takes its share: a run does not depend on the number of processes.

    Args:
        train, validation, test, predict: files of prompts in any form that `load_benchmark` reads; each is needed only by the
            stage that uses it.
        batch_size: prompts per update, over all processes.
        eval_batch_size: prompts per batch in validation, test and predict.
        seed: seed of the training order.
        shuffle: whether to shuffle the training prompts; otherwise they keep the order of the file.
        overlap: what to do when training shares prompts with validation or test: `error`, `warn` or `ignore`. Prompts are the same
            that ask for the same words where a reward reads them, elsewhere those of the same text. Single words that different
            prompts of two of the files share are warned of, once, unless it is `ignore`.
    """

    compare_words: bool = True
    """Whether a reward reads words, where no Trainer's module says so."""

    def __init__(
        self,
        train: str | Path | None = None,
        validation: str | Path | None = None,
        test: str | Path | None = None,
        batch_size: int = 4,
        predict: str | Path | None = None,
        seed: int = 0,
        shuffle: bool = True,
        eval_batch_size: int = 16,
        overlap: Literal["error", "warn", "ignore"] = "error",
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1 prompt, got {value}")
        if overlap not in ("error", "warn", "ignore"):
            raise ValueError(f"overlap must be 'error', 'warn' or 'ignore', got {overlap!r}")
        self.paths = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.batch_size, self.eval_batch_size, self.overlap = batch_size, eval_batch_size, overlap
        self.order_seed = seed if shuffle else None
        self.prompts: dict[str, list[Prompt]] = {}
        self._training: TrainingBatches | None = None
        self._said_words = False

    def setup(self, stage: str) -> None:
        """Read and check every file that is given, so that a mistake in the last one shows before training."""
        self.prompts = {name: load_benchmark(path) for name, path in self.paths.items() if path is not None}
        for name in ("validation", "test"):
            if "train" in self.prompts and name in self.prompts and self.overlap != "ignore":
                self._check_overlap(name)
        if self.overlap != "ignore":
            self._warn_of_words()
        if "train" in self.prompts and self._training is None:
            self._training = TrainingBatches(self.prompts["train"], self.batch_size, self.order_seed, self._processed)

    @property
    def evaluated(self) -> list[Prompt]:
        """The prompts that validation and test sample."""
        return [prompt for name in ("validation", "test") for prompt in self.prompts.get(name, ())]

    def _check_overlap(self, name: str) -> None:
        try:
            check_disjoint(self.prompts["train"], self.prompts[name], ("train", name), self._rewards_read_words())
        except OverlapError as error:
            if self.overlap == "error":
                raise
            warnings.warn(str(error), stacklevel=3)

    def _warn_of_words(self) -> None:
        """Warn once of single words that different prompts of two files ask for, where a reward reads them."""
        if self._said_words or not self._rewards_read_words():
            return
        pairs = itertools.combinations([name for name in ("train", "validation", "test") if name in self.prompts], 2)
        shared = {pair: shared_words(*(self.prompts[name] for name in pair)) for pair in pairs}
        said = [f"{' and '.join(pair)} share {len(words)} ({listed(words)})" for pair, words in shared.items() if words]
        if said:
            self._said_words = True
            warnings.warn(
                f"different prompts ask for the same single words: {'; '.join(said)}. What training learns of a word in one prompt "
                "it knows in all, so these words do not measure the model on words that it has not seen. Where they are more than "
                "common ones such as 'the', remove their prompts from one of the two files; data.overlap: ignore says nothing",
                stacklevel=3,
            )

    def _rewards_read_words(self) -> bool:
        module = None if self.trainer is None else self.trainer.lightning_module
        rewards = getattr(module, "rewards", None)
        return rewards.reads_words if isinstance(rewards, WeightedRewards) else self.compare_words

    def _processed(self) -> int | None:
        if self.trainer is None:
            return None
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    def _given(self, name: str) -> list[Prompt]:
        if name not in self.prompts:
            other = ", or give --prompt 'TEXT'" if name == "predict" else ""
            raise PromptFileError(f"no prompts for this stage: set data.{name} to a JSONL file{other}")
        return self.prompts[name]

    def train_dataloader(self) -> TrainingBatches:
        """The endless stream of training batches."""
        self._given("train")
        assert self._training is not None
        return self._training

    def val_dataloader(self) -> EvaluationBatches | list[Any]:
        """The validation prompts, once; nothing when fitting without a validation file."""
        if "validation" not in self.prompts and self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            return []
        return EvaluationBatches(self._given("validation"), self.eval_batch_size)

    def test_dataloader(self) -> EvaluationBatches:
        """The test prompts, once."""
        return EvaluationBatches(self._given("test"), self.eval_batch_size)

    def predict_dataloader(self) -> EvaluationBatches:
        """The prompts to sample images of, once."""
        return EvaluationBatches(self._given("predict"), self.eval_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The position in the training order."""
        return self._training.state_dict() if self._training is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a saved position in the training order."""
        if self._training is not None and state_dict:
            self._training.load_state_dict(state_dict)
