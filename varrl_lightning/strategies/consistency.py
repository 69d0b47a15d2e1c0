"""Whether all processes hold the same run: weights, counters, seeds, configuration, versions and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from varrl_lightning.data import TrainingBatches
from varrl_lightning.errors import RanksDisagreeError
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.policies.state import Anchor
from varrl_lightning.strategies.base import Parallel
from varrl_lightning.weights.fingerprint import SAMPLED, checksums, digest

SHOWN = 10
"""The most differences that a message lists."""
LONG = 60
"""The most characters of a value that a message shows."""
_OF_THE_TRAINER = ("max_steps", "max_epochs", "precision", "num_training_batches")
_PACKAGES = ("torch", "lightning")


@runtime_checkable
class ComparedModule(Protocol):
    """What is compared of a `VARGRPO`."""

    policy: VARPolicy

    @property
    def reference(self) -> Anchor | None:
        """What the KL is taken to."""

    @property
    def parallel(self) -> Parallel:
        """How the processes work together."""

    @property
    def rollouts_done(self) -> int:
        """Training steps so far."""

    def describe(self) -> dict[str, object]:
        """Counters, settings and the parts of the algorithm by name; dataclasses are compared field by field."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Of the module's own tree."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Of the module's own tree."""


class RankConsistency(Callback):
    """Compares all processes at the start of a fit and again every so many training steps; part of every `VARGRPO`.

    Args:
        module: what is compared.
        every_n_steps: training steps between two comparisons; 0 compares at the start alone.
    """

    def __init__(self, module: ComparedModule, every_n_steps: int) -> None:
        self.module, self.every_n_steps = module, every_n_steps
        self._agreed: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare the weights that each process was given, by a sample: afterwards nobody holds all of them.

        Raises:
            RanksDisagreeError: names the tensors.
        """
        self._agreed = None
        if stage == "fit" and self.module.parallel.world_size > 1:
            # Adapters begin at random, by each process's own generator; a strategy makes one of them.
            given = {
                name: x for name, x in _parameters_and_buffers(self.module) if name.startswith("policy.") and not is_adapter(name)
            }
            _compare(checksums(given, SAMPLED), self.module.parallel, "before training")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Compare everything before the first step of a fit: only now is a checkpoint loaded under every strategy.

        Raises:
            RanksDisagreeError: names what differs, with each value where it is short, and on which ranks.
        """
        if self.module.parallel.world_size > 1 and self._agreed is None:
            self._compare(trainer, True, f"before training step {self.module.rollouts_done}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare what training changes after every n-th step, before the step can be saved.

        Raises:
            RanksDisagreeError: as above.
        """
        step = self.module.rollouts_done
        if self.module.parallel.world_size > 1 and self.every_n_steps and step % self.every_n_steps == 0:
            self._compare(trainer, False, f"after training step {step}, but did after step {self._agreed}")

    def _compare(self, trainer: L.Trainer, frozen: bool, when: str) -> None:
        _compare(facts_of(self.module, trainer, frozen), self.module.parallel, when)
        self._agreed = self.module.rollouts_done


def facts_of(module: ComparedModule, trainer: L.Trainer, frozen: bool = True) -> dict[str, str]:
    """What must be the same on every process, by name: short values as they are, tensors as checksums.

    Args:
        frozen: whether to include what training never changes and takes long to look at: frozen weights and the prompts.
    """
    described = [_fields(value, name) for name, value in module.describe().items()]
    return (
        dict(chain.from_iterable(facts.items() for facts in described))
        | {f"trainer.{name}": str(getattr(trainer, name)) for name in _OF_THE_TRAINER}
        | {f"version of {name}": version(name) for name in _PACKAGES}
        | {"version of varrl-lightning": version("varrl-lightning")}
        | _optimizer(trainer)
        | _prompt_order(trainer, frozen)
        | checksums(dict(_tensors(module, frozen)))
    )


def differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """One line for each name whose value is not the same everywhere, with the ranks of each value; empty when all agree.

    Args:
        facts: of each process, in the order of their ranks.
    """
    problems = []
    for name in dict.fromkeys(chain.from_iterable(facts)):
        ranks: dict[str, list[int]] = {}
        for rank, facts_of_rank in enumerate(facts):
            ranks.setdefault(facts_of_rank.get(name, "absent"), []).append(rank)
        if len(ranks) > 1:
            problems.append(f"{name}: " + "; ".join(f"{_abbreviated(x)} on {_ranks_in_words(held)}" for x, held in ranks.items()))
    return problems


def _parameters_and_buffers(module: ComparedModule | nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _tensors(module: ComparedModule, frozen: bool) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of the module's tree, and of what lies outside it: the reference, and frozen parts of the policy."""
    yield from ((name, x) for name, x in _parameters_and_buffers(module) if frozen or x.requires_grad)
    if frozen:
        parts = {f"policy.{name}": part for name, part in module.policy.frozen_parts.items()}
        if isinstance(module.reference, VARPolicy):
            parts["reference"] = module.reference.transformer
        for name, part in parts.items():
            yield from ((f"{name}.{inner}", x) for inner, x in _parameters_and_buffers(part))


def _fields(value: Any, name: str = "") -> dict[str, str]:
    """The fields of a dataclass, and of those in it, by their paths."""
    if not is_dataclass(value):
        return {name: str(value)}
    values: dict[str, str] = {}
    for field in fields(value):
        values |= _fields(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
    return values


def _optimizer(trainer: L.Trainer) -> dict[str, str]:
    """The options of the optimizers, such as the learning rate; moments show in the weights one step later."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {
        f"optimizer.{i}.{name}": str(value)
        for i, group in enumerate(groups)
        for name, value in group.items()
        if isinstance(value, (bool, int, float, str, tuple))
    }


def _prompt_order(trainer: L.Trainer, frozen: bool) -> dict[str, str]:
    """Where training is in its prompts, and which they are; empty for a foreign loader, whose ranks may differ."""
    loader: Any = trainer.train_dataloader
    if not isinstance(loader, TrainingBatches):
        return {}
    prompts = {"prompts": digest(map(repr, loader.prompts))} if frozen else {}
    return prompts | {f"prompts.{name}": str(value) for name, value in loader.state_dict().items()}


def _compare(facts: Mapping[str, str], parallel: Parallel, when: str) -> None:
    whole = digest(f"{name} = {value}" for name, value in sorted(facts.items()))
    if len(set(parallel.gather(whole))) == 1:
        return
    # All processes see the same hashes, so all come here.
    problems = differences(parallel.gather(dict(facts)))
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise RanksDisagreeError(
        f"the {parallel.world_size} processes do not hold the same {when}:\n  "
        + "\n  ".join(problems[:SHOWN] + more)
        + "\nStart every process with the same command, configuration, files and package versions. What was saved "
        "since they agreed may be what one of them alone came to: resume from a checkpoint before that."
    )


def _abbreviated(value: str) -> str:
    return value if len(value) <= LONG else f"{value[: LONG // 2]}... (hash {digest([value])})"


def _ranks_in_words(ranks: Sequence[int]) -> str:
    """Ranks as a message names them: `rank 3`, `ranks 0-2, 5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
