"""Low-rank adapters: a few trained numbers beside frozen weights, and the frozen policy as a view of the adapted one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora_targets import layers_of, settings_of, targeted
from varrl_lightning.policies.peft_folder import base_mark, exactly, read_adapter, write_adapter
from varrl_lightning.policies.state import Cond
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Score
from varrl_lightning.weights.loading import differences

_NAME = "default"
_ADAPTER, _BASE = re.compile(rf"\.(lora_[AB])\.{_NAME}\."), ".base_layer."


def add_lora(
    policy: VARPolicy,
    rank: int | None = None,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    adapter: str | Path | None = None,
) -> VARPolicy:
    """Freeze a policy's transformer and give its linear layers trained low-rank adapters, in place (arXiv 2106.09685).

        W x  becomes  W x + alpha / rank * B A x,   A (rank, in) random, B (out, rank) zero, both in fp32

    Args:
        rank: of the product B A, >= 1; None for that of `adapter`, else 16.
        alpha: > 0; alpha / rank scales the product; None for that of `adapter`, else 32.
        targets: names of linear layers, their ends after a dot, or patterns of these (`*`, `?`); None for those of `adapter`, else
            for all linear layers.
        dropout: 0, since with any other the ratio of an untouched policy would differ from 1.
        adapter: a folder or hub id of PEFT's (`adapter_config.json`, `adapter_model.safetensors`) whose A and B to begin with. The
            policy with its adapter off, the reference of a KL, is still the base alone.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: on a value out of its range, a target that is no linear layer, a policy that has an adapter, or a folder of
            another rank, alpha, targets or base; the policy is unchanged then.
    """
    from peft import LoraConfig, inject_adapter_in_model

    start = None if adapter is None else read_adapter(adapter)
    rank, alpha = settings_of(start, rank, alpha)
    _check_adaptable(policy, rank, alpha, dropout)
    layers = targeted(policy.transformer, targets) if start is None else layers_of(start, policy.transformer, targets)
    # peft's annotation of alpha is narrower than what it computes.
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=exactly(layers),
        lora_dropout=0.0,
        bias="none",
    )
    policy.transformer.requires_grad_(False)
    inject_adapter_in_model(config, policy.transformer, adapter_name=_NAME)
    for name, parameter in policy.transformer.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if start is not None:
        load_adapter(policy, start.tensors)
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


def save_adapter(
    policy: VARPolicy, folder: str | Path, dtype: torch.dtype | None = None, weights: Mapping[str, Tensor] | None = None
) -> Path:
    """Write the adapter in PEFT's own form, which `peft.PeftModel.from_pretrained(policy.transformer, folder)` loads.

    Args:
        folder: a new or an empty folder.
        dtype: of A and B; None for float32.
        weights: as of `merged_tensors`.

    Raises:
        ValueError: when the policy has no adapter, or the folder exists and is not empty.
    """
    settings = adapter_settings(policy)
    if settings is None:
        raise ValueError("the policy has no adapter to write; apply add_lora first, or export the weights themselves")
    held = policy.transformer.state_dict() | dict(weights or {})
    tensors = {_ADAPTER.sub(r".\1.", name): x.to(dtype or torch.float32) for name, x in held.items() if is_adapter(name)}
    source = getattr(policy.transformer, "source", None)
    return write_adapter(folder, settings, tensors, base_mark(base_tensors(policy)), source)


def base_tensors(policy: VARPolicy) -> dict[str, Tensor]:
    """The transformer's tensors without the adapter, named as before `add_lora`."""
    tensors = policy.transformer.state_dict()
    return {name.replace(_BASE, "."): x for name, x in tensors.items() if not is_adapter(name)}


def merged_tensors(
    policy: VARPolicy, dtype: torch.dtype | None = None, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The transformer's tensors with W + alpha / rank * B A for W, named as before `add_lora`; the policy stays as it is.

    The sum is taken in fp32 whatever W is, and cast once. Steps of RL are small: in the bf16 of a large base most of them are less
    than half of W's last digit, and would be lost (`cast_loss`).

    Args:
        dtype: of the floating-point tensors; None for float32 where something was merged, and for what they are elsewhere.
        weights: values to take in place of some of the policy's, by the names of the transformer's state dict: of an average.
    """
    held = policy.transformer.state_dict() | dict(weights or {})
    tensors = {name.replace(_BASE, "."): _cast(x, dtype) for name, x in held.items() if not is_adapter(name)}
    for name, weight, update in _updates(policy, held):
        tensors[f"{name}.weight"] = _cast(weight + update, dtype)
    return tensors


@dataclass(frozen=True)
class CastLoss:
    """What a cast to fewer digits takes from an adapter's update of the weights.

    Args:
        error: ||cast(W + BA) - (W + BA)|| / ||BA||, over all adapted layers.
        unchanged: share of the adapted layers' weights with cast(W + BA) = cast(W).
    """

    error: float
    unchanged: float

    def __str__(self) -> str:
        return f"an error of {self.error:.2%} of the adapter's update, and {self.unchanged:.2%} of the adapted weights unchanged"


def cast_loss(policy: VARPolicy, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None) -> CastLoss | None:
    """What merging and casting to `dtype` takes from the adapter's update; None where there is no update.

    Args:
        weights: as of `merged_tensors`.
    """
    lost, moved, same, count = 0.0, 0.0, 0, 0
    for _, weight, update in _updates(policy, policy.transformer.state_dict() | dict(weights or {})):
        merged = weight + update
        rounded = merged.to(dtype)
        lost += float((rounded.double() - merged.double()).square().sum())
        moved += float(update.double().square().sum())
        same += int((rounded == weight.to(dtype)).sum())
        count += merged.numel()
    return CastLoss(math.sqrt(lost / moved), same / count) if moved else None


@torch.no_grad()
def _updates(policy: VARPolicy, held: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each adapted layer's name, W and alpha / rank * B A, both in fp32 even under autocast."""
    for name, layer in policy.transformer.named_modules():
        if _is_adapted(layer):
            weight, down, up = (
                held[f"{name}.{part}.weight"].detach() for part in ("base_layer", f"lora_A.{_NAME}", f"lora_B.{_NAME}")
            )
            with torch.autocast(weight.device.type, enabled=False):
                yield name, weight.float(), layer.scaling[_NAME] * (up.float() @ down.float())


def _cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x.to(dtype) if dtype is not None and x.is_floating_point() else x


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


def _adapted(transformer: nn.Module) -> list[Any]:
    return [module for module in transformer.modules() if _is_adapted(module)]
