"""Runs under DeepSpeed that every worker does at the same time."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from tests.distributed.jobs import adamw, module, quiet
from tests.tiny import PROMPTS, LeftBright, tiny_loader, tiny_policy, tiny_trainer
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import AdapterOff
from varrl_lightning.policies.state import Cond
from varrl_lightning.strategies import parallel_of
from varrl_lightning.strategies.deepspeed import ZeROStrategy
from varrl_lightning.types import Prompt, Sampling, Score

sys.path.append(str(Path(__file__).parents[1] / "policies"))  # where pytest finds what these import of each other


def trainer_of(stage: int, processes: int, **options: Any) -> L.Trainer:
    """One of ZeRO's stages; of a single process without DeepSpeed for stage 0."""
    quiet()
    strategy: Any = "auto"
    if stage:
        # Every tensor is sharded, however small.
        strategy = ZeROStrategy(stage=stage, persistence=0)  # type: ignore[arg-type]
    return tiny_trainer(devices=processes, strategy=strategy, use_distributed_sampler=False, **options)


def whole_weights(trained: VARGRPO | Updates) -> dict[str, Tensor]:
    """The trained weights by name."""
    with trained.parallel.sampling([trained.policy]):
        return {name: p.detach().float().clone() for name, p in trained.policy.named_parameters() if p.requires_grad}


def train(
    stage: int, processes: int, steps: int = 5, prompts: Sequence[Prompt] = PROMPTS, batch_size: int = 2, **options: Any
) -> dict[str, Any]:
    """Weights, counters and metrics after some steps of the cycle (prefix, prefix, prefix, suffix)."""
    trained = module(**options)
    trainer = trainer_of(stage, processes, max_steps=steps)
    trainer.fit(trained, tiny_loader(prompts, batch_size))
    return {
        "weights": whole_weights(trained),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "counters": (trained.rollouts_done, trained.updates_done, trained.bad_steps, trainer.global_step),
    }


def save(stage: int, processes: int, folder: str, steps: int = 6, every: int = 3, **options: Any) -> dict[str, Tensor]:
    """The weights after a run that has saved a checkpoint `folder/step=N.ckpt` every few steps."""
    trained = module(lr_scheduler=halving, **options)
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)
    trainer = trainer_of(stage, processes, max_steps=steps, enable_checkpointing=True, callbacks=[saving])
    trainer.fit(trained, tiny_loader())
    return whole_weights(trained)


def resume(stage: int, processes: int, path: str, steps: int = 6, **options: Any) -> dict[str, Tensor]:
    """The weights after a run that goes on from a checkpoint."""
    trained = module(lr_scheduler=halving, **options)
    trainer = trainer_of(stage, processes, max_steps=steps)
    trainer.fit(trained, tiny_loader(), ckpt_path=path)
    assert (trained.rollouts_done, trainer.global_step) == (steps, steps)
    return whole_weights(trained)


def halving(optimizer: Any) -> Any:
    """A learning rate that tells each step from the others."""
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def made(family: str, lora: bool, gradient_checkpointing: bool) -> tuple[VARPolicy, Cond]:
    """A tiny policy of a family, and its prompts."""
    import test_llm_prefix
    import test_lora_on_families as families

    if family == "llm_prefix":
        policy: VARPolicy = test_llm_prefix.tiny_policy("qwen2", gradient_checkpointing=gradient_checkpointing)
        cond = policy.encode_prompts(test_llm_prefix.PROMPTS[:2])
    else:
        with tempfile.TemporaryDirectory() as folder:  # each process its own
            policy, cond = getattr(families, family)(Path(folder), gradient_checkpointing=gradient_checkpointing)
            policy = copy.deepcopy(policy)  # a part that is read later is read while the file is there
    if lora:
        families.disturbed(policy)
    return policy, cond.rows(slice(0, 2))


class Updates(L.LightningModule):
    """Draws, scores and steps as VARGRPO does, with one loss for all families."""

    spans = ((0, 3), (2, None), (0, 2))
    """Of scales: prefixes, and a suffix."""

    def __init__(self, family: str, lora: bool = False, micro_batches: int = 2, gradient_checkpointing: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.cond = made(family, lora, gradient_checkpointing)
        self.micro_batches = micro_batches
        self._reference = (AdapterOff(self.policy) if lora else self.policy.frozen_copy(),)
        self.norms: list[float] = []

    def setup(self, stage: str) -> None:
        self.parallel = parallel_of(self.trainer)
        self.parallel.check_optimization(0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw([p for p in self.policy.parameters() if p.requires_grad])

    def on_fit_start(self) -> None:
        if isinstance(self._reference[0], VARPolicy):
            self.parallel.place_reference(self._reference[0], self.policy)

    def training_step(self, batch: Any, index: int) -> None:
        start, stop = self.spans[index]
        policy, cond, sampling = self.policy, self.cond.repeat(4), Sampling(cfg=2.0)
        with self.parallel.sampling([policy]):
            state = policy.begin(cond, sampling, torch.arange(len(cond)) + 100 * index)
            state = policy.sample(state, len(cond.schedule))
        # Each process takes its half of the rows, in the same number of calls.
        mine = range(len(cond))[self.parallel.rank :: self.parallel.world_size]
        size = len(mine) // self.micro_batches
        weights = torch.linspace(-1, 1, len(cond))[:, None] / len(cond)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        for first in range(0, len(mine), size):
            rows = torch.tensor(mine[first : first + size])
            scored = policy(
                [t[rows] for t in state.tokens],
                cond.at(rows),
                start,
                stop or len(cond.schedule),
                score=Score("sampler", sampling),
                reference=self._reference[0],
            )
            terms = zip(scored.log_prob, scored.kl, strict=True)
            loss = sum(((x * weights[rows] + 0.1 * kl / len(cond)).mean(-1).sum() for x, kl in terms), torch.zeros(()))
            self.parallel.backward(self, loss, last=first + size >= len(mine))
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norm = self.parallel.gradient_norm(optimizer)
        self.norms.append(float(norm))
        self.parallel.clip(optimizer, 0.5, norm)


def update(stage: int, processes: int, family: str, **options: Any) -> dict[str, Any]:
    """Weights and gradient norms after some updates of a family's policy, with a reference."""
    updates = Updates(family, **options)
    trainer = trainer_of(stage, processes, max_epochs=1)
    trainer.fit(updates, DataLoader(range(len(updates.spans)), batch_size=1))  # type: ignore[arg-type]
    return {"norms": updates.norms, "weights": whole_weights(updates)}


class BadStep(VARGRPO):
    """Its second step is not finite: the loss is not, or its gradient alone."""

    kind = "loss"

    def _micro_losses(self, *arguments: Any) -> Iterator[tuple[int, Tensor]]:
        for first, loss in super()._micro_losses(*arguments):
            yield first, self._spoilt(loss) if self.updates_done == 1 else loss

    def _spoilt(self, loss: Tensor) -> Tensor:
        if self.kind == "loss":
            return loss.detach() * torch.nan + 0 * loss.nan_to_num()
        loss.register_hook(lambda gradient: gradient * torch.nan)
        return loss


def bad_step(stage: int, processes: int, kind: str) -> dict[str, Any]:
    """What a bad step between two good ones did."""
    trained = BadStep(tiny_policy(), reward=LeftBright(), mask_source="full", m=4, group_size=4, optimizer=adamw)
    trained.kind = kind
    found: list[dict[str, Tensor]] = []

    class Record(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            found.append(whole_weights(trained))

    trainer = trainer_of(stage, processes, max_steps=3, callbacks=[Record()])
    trainer.fit(trained, tiny_loader())
    counters = (trained.rollouts_done, trained.updates_done, trained.bad_steps, trainer.global_step)
    unchanged = all(torch.equal(found[0][name], x) for name, x in found[1].items())
    changed = any(not torch.equal(found[1][name], x) for name, x in found[2].items())
    return {"weights": found[2], "unchanged": unchanged and changed, "counters": counters}


def shards() -> dict[str, Any]:
    """What a process holds after a step under ZeRO-3."""
    trained = module()
    trainer_of(3, 2, max_steps=1).fit(trained, tiny_loader())
    whole = [name for name, p in trained.policy.named_parameters() if p.numel()]
    reference: Any = trained.reference
    sharded = all(isinstance(p, DTensor) for block in reference.blocks() for p in block.parameters())
    with trained.parallel.sampling([trained.policy]):
        within = all(p.numel() for p in trained.policy.parameters())
    return {"whole": whole, "reference_is_sharded": sharded, "within_sampling": within}


def own_settings(max_grad_norm: float, zero: dict[str, Any], **settings: Any) -> None:
    """A configuration of DeepSpeed's that says what the model does not."""
    quiet()
    strategy = ZeROStrategy(config={"zero_optimization": {"stage": 2} | zero} | settings)
    tiny_trainer(devices=2, strategy=strategy, max_steps=1).fit(module(max_grad_norm=max_grad_norm), tiny_loader())


def names() -> dict[str, int]:
    """The stage of each strategy by its name."""
    found = {}
    for name in ("zero1", "zero2", "zero3"):
        strategy: Any = tiny_trainer(strategy=name, devices=1).strategy
        found[name] = strategy.config["zero_optimization"]["stage"]
    return found


def evaluated(stage: int, processes: int) -> dict[str, float]:
    """Metrics of a validation within a fit, and of a test on its own."""
    trained = module()
    trainer = trainer_of(stage, processes, max_steps=2, limit_train_batches=2)
    trainer.fit(trained, tiny_loader(), tiny_loader())
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    tested = trainer_of(stage, processes).test(module(), tiny_loader(), verbose=False)[0]
    return found | {name: float(value) for name, value in tested.items()}
