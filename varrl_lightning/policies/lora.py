"""Low-rank adapters: a few trained numbers beside frozen weights, and the frozen policy as a view of the adapted one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.state import Cond
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Score
from varrl_lightning.weights.loading import differences

_NAME = "default"
_ADAPTER, _BASE = re.compile(rf"\.(lora_[AB])\.{_NAME}\."), ".base_layer."


def add_lora(
    policy: VARPolicy, rank: int = 16, alpha: float = 32.0, targets: Sequence[str] | None = None, dropout: float = 0.0
) -> VARPolicy:
    """Freeze a policy's transformer and give its linear layers trained low-rank adapters, in place (arXiv 2106.09685).

        W x  becomes  W x + alpha / rank * B A x,   A (rank, in) random, B (out, rank) zero, both in fp32

    Args:
        rank: of the product B A, >= 1.
        alpha: > 0; alpha / rank scales the product.
        targets: names of linear layers, their ends after a dot, or patterns of these (`*`, `?`); None for all linear layers.
        dropout: 0, since with any other the ratio of an untouched policy would differ from 1.

    Raises:
        ValueError: on a value out of its range, a target that is no linear layer, or a policy that has an adapter; the
            policy is unchanged then.
    """
    from peft import LoraConfig, inject_adapter_in_model

    _check_adaptable(policy, rank, alpha, dropout)
    names = "|".join(re.escape(name) for name in _targeted(policy.transformer, targets))
    # peft's annotation of alpha is narrower than what it computes.
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=f"({names})",
        lora_dropout=0.0,
        bias="none",
    )
    policy.transformer.requires_grad_(False)
    inject_adapter_in_model(config, policy.transformer, adapter_name=_NAME)
    for name, parameter in policy.transformer.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    policy.eval()  # new adapter layers are in training mode
    return policy


def _check_adaptable(policy: VARPolicy, rank: int, alpha: float, dropout: float) -> None:
    if dropout != 0:
        raise ValueError(f"dropout must be 0, got {dropout}: the sampler's and the trained policy must be the same function")
    if rank < 1 or not alpha > 0:
        raise ValueError(f"rank must be at least 1 and alpha > 0, got rank {rank} and alpha {alpha}")
    if has_adapter(policy):
        raise ValueError("the policy has an adapter already")


def has_adapter(policy: VARPolicy) -> bool:
    """Whether `add_lora` was applied."""
    return bool(_adapted(policy.transformer))


def adapter_settings(policy: VARPolicy) -> dict[str, float] | None:
    """`rank` and `alpha` of the adapter; None without one. Its tensors alone do not hold alpha."""
    layers = _adapted(policy.transformer)
    if not layers:
        return None
    return {"rank": layers[0].r[_NAME], "alpha": float(layers[0].lora_alpha[_NAME])}


def is_adapter(name: str) -> bool:
    """Whether a tensor of a state dict belongs to an adapter, by its name."""
    return _ADAPTER.search(name) is not None


@contextmanager
def adapter_off(policy: VARPolicy) -> Iterator[None]:
    """Inside the `with` block the policy computes exactly what it did before `add_lora`; `requires_grad` is unchanged."""
    layers = _adapted(policy.transformer)
    before = [layer._disable_adapters for layer in layers]
    # Not peft's switch: it also takes the adapter's parameters out of training.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer._disable_adapters = flag


@dataclass(frozen=True)
class AdapterOff:
    """A policy with its adapter off as the anchor of a KL: no second copy of the weights.

    Args:
        policy: one with an adapter.
    """

    policy: VARPolicy

    def __post_init__(self) -> None:
        if not has_adapter(self.policy):
            raise ValueError("the policy has no adapter that could be off; apply add_lora first")

    def span_halves(self, tokens: list[Tensor], cond: Cond, start: int, stop: int, score: Score) -> list[list[Tensor]]:
        """See `VARPolicy.span_halves`."""
        with adapter_off(self.policy):
            return self.policy.span_halves(tokens, cond, start, stop, score)

    def on_support(self, halves: list[Tensor], support: Tensor, scale: int, schedule: Schedule, score: Score) -> Tensor:
        """See `VARPolicy.on_support`."""
        with adapter_off(self.policy):
            return self.policy.on_support(halves, support, scale, schedule, score)


def adapter_tensors(policy: VARPolicy) -> dict[str, Tensor]:
    """The adapter alone, by names such as `blocks.0.qkv.lora_A.weight`; empty without one."""
    tensors = policy.transformer.state_dict()
    return {_ADAPTER.sub(r".\1.", name): x for name, x in tensors.items() if is_adapter(name)}


def load_adapter(policy: VARPolicy, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors that `adapter_tensors` returned for a policy with an adapter of the same rank and targets.

    Raises:
        ValueError: when the names or shapes are not exactly the adapter's; the message lists what differs.
    """
    adapter = adapter_tensors(policy)
    if problems := differences(tensors, adapter):
        raise ValueError("the tensors do not fit the policy's adapter (rank, targets):\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, x in adapter.items():
            x.copy_(tensors[name])


def base_tensors(policy: VARPolicy) -> dict[str, Tensor]:
    """The transformer's tensors without the adapter, named as before `add_lora`."""
    tensors = policy.transformer.state_dict()
    return {name.replace(_BASE, "."): x for name, x in tensors.items() if not is_adapter(name)}


@torch.no_grad()
def merged_tensors(policy: VARPolicy) -> dict[str, Tensor]:
    """The transformer's tensors with W + alpha / rank * B A for W, named as before `add_lora`; the policy stays as it is."""
    tensors = base_tensors(policy)
    for name, layer in policy.transformer.named_modules():
        if _is_adapted(layer):
            weight, down, up = layer.base_layer.weight, layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
            merged = weight.float() + layer.scaling[_NAME] * (up.float() @ down.float())
            tensors[f"{name}.weight"] = merged.to(weight.dtype)
    return tensors


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def _adapted(transformer: nn.Module) -> list[Any]:
    return [module for module in transformer.modules() if _is_adapted(module)]


def _targeted(transformer: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Names of the linear layers that the targets match."""
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in targets or ():
        if not any(_matches(name, target) for name in linear):
            layers = dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in linear)
            raise ValueError(f"the target {target!r} is no linear layer of {type(transformer).__name__}: {', '.join(layers)}")
    chosen = [name for name in linear if targets is None or any(_matches(name, target) for target in targets)]
    if not chosen:
        raise ValueError(f"{type(transformer).__name__} has no linear layers to adapt; targets: {targets}")
    return chosen


def _matches(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")
