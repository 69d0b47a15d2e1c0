"""Runs of `VARGRPO` that every worker does at the same time."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.tiny import PROMPTS, LeftBright, tiny_loader, tiny_module, tiny_policy, tiny_trainer
from varrl_lightning.errors import RankError
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.lora import add_lora
from varrl_lightning.types import Box, Prompt, Scores


def quiet() -> None:
    """Say nothing but errors."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The gradient of a key's bias is zero but for rounding: a small eps would make a step of that rounding."""
    return torch.optim.AdamW(parameters, lr=1e-3, eps=1e-4)


def module(lora: bool = False, **options: Any) -> VARGRPO:
    """A module that is the same on every rank."""
    options = {"optimizer": adamw} | options
    policy = tiny_policy()
    if lora:
        torch.manual_seed(1)
        add_lora(policy, rank=4)
    return tiny_module(policy, **({"kl_coef": 0.01} | options))


def train(
    strategy: str | None, world_size: int, steps: int = 5, prompts: Sequence[Prompt] = PROMPTS, batch_size: int = 2, **options: Any
) -> dict[str, Any]:
    """Weights, counters and metrics after some steps of the cycle (prefix, prefix, prefix, suffix)."""
    quiet()
    trained = module(**options)
    trainer = tiny_trainer(devices=world_size, strategy=named(strategy), max_steps=steps, use_distributed_sampler=False)
    trainer.fit(trained, tiny_loader(prompts, batch_size))
    return {
        "weights": full_weights(trained),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "counters": (trained.rollouts_done, trained.updates_done, trained.counters.bad_steps),
    }


def named(strategy: str | None) -> Any:
    """A strategy by its name; ZeRO with nothing too small to be sharded, and FSDP2 that gathers as late as can be."""
    if strategy == "fsdp2_lean":
        from varrl_lightning.strategies.fsdp2 import FSDP2Strategy

        return FSDP2Strategy(sampling="sharded", accumulate="shard")
    if strategy is None or not strategy.startswith("zero"):
        return strategy or "auto"
    from varrl_lightning.strategies.deepspeed import ZeROStrategy

    return ZeROStrategy(stage=int(strategy[-1]), persistence=0)  # type: ignore[arg-type]


def full_weights(trained: Any, frozen: bool = False) -> dict[str, Tensor]:
    """The trained weights by name, whole; those of a frozen base as well."""
    parameters = {name: p for name, p in trained.policy.named_parameters() if frozen or p.requires_grad}
    with contextlib.ExitStack() as stack:
        if any(hasattr(p, "ds_id") for p in parameters.values()):
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(list(parameters.values())))
        whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in parameters.items()}
        return {name: p.detach().clone() for name, p in whole.items()}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two weights of the same name."""
    assert one.keys() == other.keys()
    return max((float((one[name] - other[name]).abs().max()) for name in one), default=0.0)


class WinRate:
    """How often an image is the brighter one on the left among the images it is called with, softly; refuses a part of a group.

    Args:
        each: A * K, or all of them where several stages differ in it.
    """

    whole_groups = True

    def __init__(self, each: int | list[int]) -> None:
        self.each = [each] if isinstance(each, int) else each

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if len(images) not in self.each or len(set(prompts)) > 1:
            raise ValueError(f"{len(images)} images of {len(set(prompts))} prompts are no whole group")
        values = LeftBright()(images, prompts)
        wins = torch.sigmoid(200 * (values[:, None] - values[None, :])).mean(dim=1)
        return Scores(wins, {"wins": wins}, [[Box(0, 0, 8, 8)]] * len(images))


class FailsOnRank1(LeftBright):
    """On one rank alone, is late in the rollout before `rollout`, and raises in `rollout`."""

    def __init__(self, module: list[VARGRPO], rollout: int) -> None:
        self.module, self.rollout = module, rollout

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        module = self.module[0]
        if module.parallel.rank == 1 and module.rollouts_done == self.rollout - 1:
            time.sleep(0.5)
        if module.parallel.rank == 1 and module.rollouts_done == self.rollout:
            raise KeyError("font")
        return super().__call__(images, prompts)


def disturbed(strategy: str) -> dict[str, Any]:
    """What comes of a run whose reward is late on rank 1 in the second rollout, and raises there in the third."""
    quiet()
    found: list[VARGRPO] = []
    trained = module(reward=FailsOnRank1(found, 2))
    found.append(trained)
    trainer = tiny_trainer(devices=2, strategy=named(strategy), max_steps=4, use_distributed_sampler=False)
    error = ""
    try:
        trainer.fit(trained, tiny_loader())
    except RankError as caught:
        error = str(caught)
    return {"error": error, "rollouts": trained.rollouts_done, "weights": full_weights(trained)}


class SecondReader:
    """Reads the first half of each word, and nothing in images of STONE; may raise on rank 1."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if self.fails and os.environ["LOCAL_RANK"] == "1":
            raise KeyError("font")
        known = torch.tensor(["STONE" not in prompt.text for prompt in prompts])
        texts = [[word[: len(word) // 2] for word in prompt.words] for prompt in prompts]
        return Scores(images.mean(dim=(1, 2, 3)), valid=known, texts=texts)


def judged(strategy: str | None, world_size: int, fails: bool = False) -> dict[str, float]:
    """Metrics of a validation within a fit and of a test, in which two rewards score that training does not see."""
    quiet()
    second = {"class_path": "tests.distributed.jobs.SecondReader", "init_args": {"fails": fails}}
    trained = module(evaluate_with={"light": "tests.tiny.LeftBright", "second": second})
    options: dict[str, Any] = {"devices": world_size, "strategy": named(strategy), "use_distributed_sampler": False}
    trainer = tiny_trainer(max_steps=1, limit_train_batches=1, num_sanity_val_steps=0, **options)
    trainer.fit(trained, tiny_loader(), tiny_loader(PROMPTS[:3], 3))
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return found | {name: float(x) for name, x in trainer.test(trained, tiny_loader(PROMPTS[:3], 3), verbose=False)[0].items()}


def faulty() -> str:
    """What is raised on every process when the mask source of one has a fault."""
    quiet()

    def mask_source(rollout: Any, scores: Any, policy: Any) -> Tensor:
        if trained.parallel.rank == 1:
            raise IndexError("no such pixel")
        return torch.ones_like(rollout.images[:, 0])

    trained = module(mask_source=mask_source)
    try:
        tiny_trainer(devices=2, strategy="ddp", max_steps=1, use_distributed_sampler=False).fit(trained, tiny_loader())
    except RankError as caught:
        return str(caught)
    return "nothing was raised"


def command(folder: str, arguments: Sequence[str]) -> None:
    """A command of the command line, in a folder."""
    from varrl_lightning.__main__ import main

    os.chdir(folder)
    status = main(list(arguments))
    assert status == 0, f"ended with {status}"


def refused(by: str, **arguments: Any) -> str:
    """What the job `by` raises on every process before a step is taken, so that none waits for another and all can go on."""
    module, _, function = by.partition(":")
    try:
        getattr(importlib.import_module(module), function)(**arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
