"""Runs under DeepSpeed that every worker does at the same time."""

from __future__ import annotations

import itertools
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.distributed.jobs import adamw, full_weights, module, named, quiet
from tests.tiny import LeftBright, M, change_losses, tiny_loader, tiny_policy, tiny_trainer
from varrl_lightning.module import VARGRPO
from varrl_lightning.strategies.deepspeed import ZeROStrategy


def trainer_of(strategy: str | None, processes: int, **options: Any) -> L.Trainer:
    quiet()
    return tiny_trainer(devices=processes, strategy=named(strategy), use_distributed_sampler=False, **options)


def save(strategy: str | None, processes: int, folder: str, **options: Any) -> dict[str, Any]:
    """Weights, counters and metrics after a run that has saved a checkpoint `folder/step=N.ckpt` in the middle and at the end."""
    trained = module(lr_scheduler=halving, **options)
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = trainer_of(strategy, processes, max_steps=6, enable_checkpointing=True, callbacks=[saving])
    trainer.fit(trained, tiny_loader())
    return {
        "weights": full_weights(trained),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "counters": (trained.rollouts_done, trained.updates_done, trained.counters.bad_steps, trainer.global_step),
    }


def resume(strategy: str, processes: int, path: str, **options: Any) -> dict[str, Tensor]:
    """The weights after a run that goes on from a checkpoint."""
    trained = module(lr_scheduler=halving, **options)
    trainer = trainer_of(strategy, processes, max_steps=6)
    trainer.fit(trained, tiny_loader(), ckpt_path=path)
    assert (trained.rollouts_done, trainer.global_step) == (6, 6)
    return full_weights(trained)


def halving(optimizer: Any) -> Any:
    """A learning rate that tells each step from the others."""
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def bad_steps(strategy: str | None, processes: int) -> dict[str, Any]:
    """Weights and counters after good and bad steps in turn, and which of the steps have changed the weights.

    The second step is not finite in the loss, and the fourth in the gradient alone.
    """
    trained = VARGRPO(tiny_policy(), reward=LeftBright(), mask_source="full", m=M, group_size=4, optimizer=adamw)

    def spoil(loss: Tensor) -> Tensor:
        if trained.updates_done == 1:
            return loss.detach() * torch.nan + 0 * loss.nan_to_num()
        if trained.updates_done == 3:
            loss.register_hook(lambda gradient: gradient * torch.nan)
        return loss

    change_losses(trained, spoil)
    found: list[dict[str, Tensor]] = []

    class Record(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            found.append(full_weights(trained))

    trainer = trainer_of(strategy, processes, max_steps=5, callbacks=[Record()])
    trainer.fit(trained, tiny_loader())
    counters = (trained.rollouts_done, trained.updates_done, trained.counters.bad_steps, trainer.global_step)
    changed = [any(not torch.equal(a[name], x) for name, x in b.items()) for a, b in itertools.pairwise(found)]
    return {"weights": found[-1], "changed": changed, "counters": counters}


def shards() -> dict[str, Any]:
    """What a process holds after a step under ZeRO-3."""
    trained = module()
    trainer_of("zero3", 2, max_steps=1).fit(trained, tiny_loader())
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


def evaluated(strategy: str | None, processes: int) -> dict[str, float]:
    """Metrics of a validation within a fit, and of a test on its own."""
    trained = module()
    trainer = trainer_of(strategy, processes, max_steps=2, limit_train_batches=2)
    trainer.fit(trained, tiny_loader(), tiny_loader())
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    tested = trainer_of(strategy, processes).test(module(), tiny_loader(), verbose=False)[0]
    return found | {name: float(value) for name, value in tested.items()}
