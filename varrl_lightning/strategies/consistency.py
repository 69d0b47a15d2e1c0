"""Whether all processes hold the same run: weights, counters, seeds, configuration, versions and prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from varrl_lightning.data import TrainingBatches
from varrl_lightning.errors import RanksDisagreeError
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.strategies.base import Parallel

SHOWN = 10
"""Differences that a message lists."""
LONG = 60
"""Characters of a value that a message shows."""
CHUNK, CHUNK_IN_CACHE = 2**23, 2**18
"""Entries of a tensor that are summed at one time: 128 MiB of intermediate values; on a CPU, what its cache holds."""
SAMPLED = 2**16
"""Entries by which a tensor as it was given is told from another."""
_COUNTERS = ("rollouts_done", "updates_done", "bad_steps", "bad_steps_in_a_row")
_SETTINGS = (
    *("seed", "eval_seed", "eta", "alpha", "updates_per_rollout", "max_grad_norm", "max_bad_steps"),
    *("micro_batch_size", "images_at_once", "ema_decay"),
)
_OF_THE_TRAINER = ("max_steps", "max_epochs", "precision", "num_training_batches")
_PACKAGES = ("torch", "lightning")
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32, 16: torch.int32}


class RankConsistency:
    """Compares all processes at the start of a fit and again every so many training steps.

    Args:
        every_n_steps: training steps between two comparisons; 0 compares at the start alone.

    Raises:
        ValueError: on a negative number.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 0:
            raise ValueError(f"agree_every_n_steps must be 0 (at the start alone) or more, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._agreed: int | None = None

    def before_sharding(self, module: Any, parallel: Parallel) -> None:
        """Compare the weights that each process was given, by a sample: afterwards nobody holds all of them.

        Raises:
            RanksDisagreeError: names the tensors.
        """
        self._agreed = None
        if parallel.world_size > 1:
            # Adapters begin at random, by each process's own generator; a strategy makes one of them.
            given = {name: x for name, x in _own(module) if name.startswith("policy.") and not is_adapter(name)}
            _compare(checksums(given, SAMPLED), parallel, "before training")

    def before_step(self, module: Any, trainer: L.Trainer, parallel: Parallel) -> None:
        """Compare everything before the first step of a fit: only now is a checkpoint loaded under every strategy.

        Raises:
            RanksDisagreeError: names what differs, with each value where it is short, and on which ranks.
        """
        if parallel.world_size > 1 and self._agreed is None:
            self._compare(module, trainer, parallel, True, f"before training step {module.rollouts_done}")

    def after_step(self, module: Any, trainer: L.Trainer, parallel: Parallel) -> None:
        """Compare what training changes after every n-th step, before the step can be saved.

        Raises:
            RanksDisagreeError: as above.
        """
        step = module.rollouts_done
        if parallel.world_size > 1 and self.every_n_steps and step % self.every_n_steps == 0:
            self._compare(module, trainer, parallel, False, f"after training step {step}, but did after step {self._agreed}")

    def _compare(self, module: Any, trainer: L.Trainer, parallel: Parallel, frozen: bool, when: str) -> None:
        facts = facts_of(module, trainer, frozen) | {"agree_every_n_steps": str(self.every_n_steps)}
        _compare(facts, parallel, when)
        self._agreed = module.rollouts_done


def facts_of(module: Any, trainer: L.Trainer, frozen: bool = True) -> dict[str, str]:
    """What must be the same on every process, by name: short values as they are, tensors as checksums.

    Args:
        module: a VARGRPO.
        frozen: whether to include what training never changes and takes long to look at: frozen weights and the prompts.
    """
    return (
        {name: str(getattr(module, name)) for name in _COUNTERS}
        | _stages(module)
        | _configuration(module)
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
        for rank, own in enumerate(facts):
            ranks.setdefault(own.get(name, "absent"), []).append(rank)
        if len(ranks) > 1:
            problems.append(f"{name}: " + "; ".join(f"{_short(value)} on {_listed(held)}" for value, held in ranks.items()))
    return problems


def checksums(tensors: Mapping[str, Tensor], entries: int | None = None) -> dict[str, str]:
    """Fletcher's checksum of each tensor that this process holds whole; sharded ones are left out.

        sum_i w_i,  sum_i (i + 1) w_i     modulo 2^64, over the bit patterns w of its entries

    Two tensors of fewer than 2^31 entries that differ in one entry, or in any two, never have the same checksum: |w_i - w_i'| <
    2^32, so that neither sum can wrap back. More differences than that meet by chance, about once in 2^64.

    Args:
        entries: about how many entries of each tensor to take, evenly spaced; None for all.
    """
    whole = {name: x.to_local() if isinstance(x, DTensor) else x for name, x in tensors.items() if _is_whole(x)}
    sums = [_fletcher(x.detach().flatten()[:: max(1, x.numel() // entries) if entries else 1]) for x in whole.values()]
    if not sums:
        return {}
    devices = {s.device for s in sums}
    # One transfer from each device, rather than one a tensor.
    found = {device: iter(torch.stack([s for s in sums if s.device == device]).tolist()) for device in devices}
    marks = {name: next(found[s.device]) for name, s in zip(whole, sums, strict=True)}
    return {name: f"{_kind(whole[name])} {a % 2**64:016x}{b % 2**64:016x}" for name, (a, b) in marks.items()}


def _fletcher(x: Tensor) -> Tensor:
    if x.is_complex():
        x = torch.view_as_real(x)
    words = x.contiguous().view(torch.int8 if x.dtype == torch.bool else _WORDS[x.element_size()]).flatten()
    size = CHUNK_IN_CACHE if x.device.type == "cpu" else CHUNK
    places = torch.arange(1, min(size, words.numel()) + 1, device=x.device)
    sums = torch.zeros(2, dtype=torch.int64, device=x.device)
    for first in range(0, words.numel(), size):
        part = words[first : first + size].long()
        total = part.sum()
        sums += torch.stack((total, (part * places[: part.numel()]).sum() + first * total))
    return sums


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def _is_whole(x: Tensor) -> bool:
    if isinstance(x, DTensor):
        return all(placement.is_replicate() for placement in x.placements)
    # ZeRO-3 leaves an empty tensor in the place of a weight; what is on meta has no values yet.
    return not hasattr(x, "ds_id") and not x.is_meta


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _tensors(module: Any, frozen: bool) -> Iterator[tuple[str, Tensor]]:
    """Of the module's own tree, and of what it hides from it: the reference, and frozen parts of the policy."""
    yield from ((name, x) for name, x in _own(module) if frozen or x.requires_grad)
    if frozen:
        parts = {f"policy.{name}": part for name, part in module.policy.frozen_parts.items()}
        if isinstance(module.reference, VARPolicy):
            parts["reference"] = module.reference.transformer
        for name, part in parts.items():
            yield from ((f"{name}.{inner}", x) for inner, x in _own(part))


def _stages(module: Any) -> dict[str, str]:
    found = {"stage": module.stage.name, "alternation": ", ".join(stage.name for stage in module.cycle)}
    for i, stage in enumerate(dict.fromkeys(module.cycle)):
        found |= _fields(stage, f"stages.{i}")
    return found


def _configuration(module: Any) -> dict[str, str]:
    settings = {name: str(getattr(module, name, None)) for name in _SETTINGS}
    for part in (module.credit_options, module.objective):
        settings |= _fields(part)
    settings |= {f"reward {name}": f"{_name(t.reward)}, weight {t.weight}" for name, t in module.rewards.terms.items()}
    return settings | {"mask_source": _name(module.mask_source)}


def _fields(value: Any, name: str = "") -> dict[str, str]:
    """The fields of a dataclass, and of those in it, by their paths."""
    if not is_dataclass(value):
        return {name: str(value)}
    found: dict[str, str] = {}
    for field in fields(value):
        found |= _fields(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
    return found


def _name(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _optimizer(trainer: L.Trainer) -> dict[str, str]:
    """Learning rate and the like; moments show in the weights one step later."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {
        f"optimizer.{i}.{name}": str(value)
        for i, group in enumerate(groups)
        for name, value in group.items()
        if isinstance(value, (bool, int, float, str, tuple))
    }


def _prompt_order(trainer: L.Trainer, frozen: bool) -> dict[str, str]:
    """Where training is in its prompts, and which they are; nothing of a foreign loader, whose ranks may differ."""
    loader: Any = trainer.train_dataloader
    if not isinstance(loader, TrainingBatches):
        return {}
    prompts = {"prompts": _digest(map(repr, loader.prompts))} if frozen else {}
    return prompts | {f"prompts.{name}": str(value) for name, value in loader.state_dict().items()}


def _compare(facts: Mapping[str, str], parallel: Parallel, when: str) -> None:
    whole = _digest(f"{name} = {value}" for name, value in sorted(facts.items()))
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


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _short(value: str) -> str:
    return value if len(value) <= LONG else f"{value[: LONG // 2]}... (hash {_digest([value])})"


def _listed(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0-2, 5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
