"""The folder in which PEFT keeps an adapter: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from varrl_lightning.configuration.atomic_write import replacing
from varrl_lightning.weights.files import Place, find_folder
from varrl_lightning.weights.fingerprint import SAMPLED, fingerprint
from varrl_lightning.weights.loading import read_tensors

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
"""What PEFT's wrapper puts before the names of a module's tensors."""
_BASE = "varrl_base"
"""Key of the base's fingerprint among the metadata of the tensors' file."""
_TENSOR = re.compile(r"(?P<layer>.+)\.lora_[AB]\.weight")
_WITHOUT_EFFECT = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "init_lora_weights", "eva_config", "corda_config", "loftq_config", "lora_ga_config", "runtime_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
"""Settings that are read here or do not change what a trained adapter computes; all others must be off."""
_KEEP_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to begin an adapter that leave the base's weights as they were."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter as PEFT saved it.

    Args:
        label: the folder, for messages.
        rank: of the product B A.
        alpha: alpha / rank scales the product.
        tensors: by names such as `blocks.0.qkv.lora_A.weight`.
        base: the fingerprint of the weights that it was trained on, where `write_adapter` wrote it.
    """

    label: str
    rank: int
    alpha: float
    tensors: dict[str, Tensor]
    base: str | None

    @property
    def layers(self) -> list[str]:
        """Names of the layers that have an adapter."""
        return sorted({match["layer"] for name in self.tensors if (match := _TENSOR.fullmatch(name))})


def read_adapter(path: str | Path) -> AdapterFolder:
    """Read a folder of PEFT's, here or on the hub.

    Raises:
        FileNotFoundError: when there is no such folder, or one of its two files is missing.
        ValueError: when it holds something else than a plain LoRA adapter of linear layers; names what.
    """
    place = find_folder(path)
    config = _config(place)
    weights = next((name for name in (WEIGHTS, OLD_WEIGHTS) if name in place.names()), WEIGHTS)
    file = place.fetch(weights)
    tensors = {name.removeprefix(_PREFIX): x for name, x in read_tensors(file).items()}
    if others := [name for name in tensors if not _TENSOR.fullmatch(name)]:
        raise ValueError(f"{place.label} holds more than an adapter of linear layers: {', '.join(others[:5])}")
    if not tensors:
        raise ValueError(f"{place.label}/{weights} holds no tensors")
    return AdapterFolder(place.label, int(config["r"]), float(config["lora_alpha"]), tensors, _base_mark(file))


def write_adapter(
    folder: str | Path, settings: Mapping[str, float], tensors: Mapping[str, Tensor], base: str | None, source: str | None
) -> Path:
    """Write a folder that `peft.PeftModel.from_pretrained(transformer, folder)` loads, and `read_adapter`.

    Args:
        folder: a new or an empty folder.
        settings: `rank` and `alpha`.
        tensors: by names such as `blocks.0.qkv.lora_A.weight`.
        base: the base's fingerprint, kept among the metadata of the tensors.
        source: the file that the base was loaded from, for the reader's information.

    Raises:
        ValueError: when the folder exists and is not empty.
    """
    from peft import LoraConfig

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists; give another name, or remove it first")
    layers = sorted({match["layer"] for name in tensors if (match := _TENSOR.fullmatch(name))})
    alpha = float(settings["alpha"])
    config = LoraConfig(
        r=int(settings["rank"]),
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
        # A pattern, since PEFT takes a name in a list for the end of any longer one.
        target_modules=exactly(layers),
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
        base_model_name_or_path=source,
    )
    with replacing(folder / WEIGHTS) as part:
        held = {_PREFIX + name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        save_file(held, part, metadata={"format": "pt"} | ({} if base is None else {_BASE: base}))
    config.save_pretrained(str(folder))
    return folder


def exactly(layers: list[str]) -> str:
    """PEFT's pattern of layers that matches these names and no others."""
    return f"({'|'.join(map(re.escape, layers))})"


def base_mark(tensors: Mapping[str, Tensor]) -> str | None:
    """The fingerprint of a base, which is the same for bfloat16 weights and for what float32 makes of them.

    None for weights on `meta`, which have no values.
    """
    if any(x.is_meta for x in tensors.values()):
        return None
    return fingerprint({name: _sampled(x) for name, x in tensors.items()})


def _sampled(x: Tensor) -> Tensor:
    taken = x.detach().flatten()[:: max(1, x.numel() // SAMPLED)]
    # Rounded, so that weights which were loaded in another dtype are the same base.
    return taken.to(torch.bfloat16) if x.is_floating_point() else taken


def _config(place: Place) -> dict[str, Any]:
    """The settings of a plain LoRA adapter."""
    try:
        config = json.loads(place.fetch(CONFIG).read_text(encoding="utf-8"))
        kind, rank, alpha = config.get("peft_type"), config.get("r"), config.get("lora_alpha")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{place.label}/{CONFIG} is no configuration of PEFT's: {error!r}") from error
    if kind != "LORA":
        raise ValueError(f"{place.label} holds an adapter of the kind {kind!r}; only LORA can be loaded")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)) or not alpha > 0:
        raise ValueError(f"{place.label}/{CONFIG}: r must be at least 1 and lora_alpha > 0, got {rank!r} and {alpha!r}")
    on = {name: x for name, x in config.items() if name not in _WITHOUT_EFFECT and x and (name, x) != ("bias", "none")}
    if config.get("init_lora_weights") not in _KEEP_THE_BASE:
        on["init_lora_weights"] = config["init_lora_weights"]
    if on:
        listed = ", ".join(f"{name} = {x!r}" for name, x in on.items())
        raise ValueError(
            f"{place.label} is no plain LoRA adapter: {listed}; only W + alpha / r * B A of an unchanged W can be loaded"
        )
    return dict(config)


def _base_mark(file: Path) -> str | None:
    if file.suffix != ".safetensors":
        return None
    with safe_open(file, framework="pt") as opened:
        return (opened.metadata() or {}).get(_BASE)
