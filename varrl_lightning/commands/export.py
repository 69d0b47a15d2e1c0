"""`varrl export`: the trained weights as one file, in the layout that the model's own code reads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from varrl_lightning.checkpoints.checking import load_checkpoint
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.fit_options import options_parser, run_with_config
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.configuration.atomic_write import replacing
from varrl_lightning.errors import ConfigError, StartError
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import merged_tensors
from varrl_lightning.weights.sizes import DTYPES, dtype_named

SUFFIXES = (".safetensors", ".pth")
WEIGHTS = ("trained", "average")
HELP = """usage: varrl export --config FILE --ckpt_path FILE --output FILE [--dtype float32|bfloat16|float16]
                    [--weights trained|average]

Writes the policy of a run as one file in its family's published layout, which the family's public code and from_pretrained load:
  --config     config.yaml of the run's folder
  --ckpt_path  a checkpoint of the run; without one, the policy as it was before training
  --output     a new file, .safetensors or .pth
  --dtype      dtype of the weights; by default that of the training
  --weights    the trained weights, or their average if the run has ema_decay; trained by default
An adapter (LoRA) is merged into the weights."""


def export_policy(policy: VARPolicy, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a policy's transformer, adapter merged, in the published layout of its family.

    Args:
        path: a file that does not exist, .safetensors or .pth.
        dtype: dtype of the floating-point weights; None keeps theirs.

    Raises:
        ValueError: when the file exists, or ends in neither.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"the output must end in {' or '.join(SUFFIXES)}, got {path}")
    if path.exists():
        raise ValueError(f"{path} exists; give another name, or remove it first")
    trained = {name: _portable(x, dtype) for name, x in merged_tensors(policy).items()}
    # The constants that a family adds are not trained weights: rounding them to `dtype` would change the model.
    tensors = {name: _portable(x, None) for name, x in policy.published(trained).items()}
    with replacing(path) as part:
        if path.suffix == ".safetensors":
            save_file(tensors, part, metadata={"format": "pt"})
        else:
            torch.save(tensors, part)
    return path


def _portable(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x.detach().to("cpu", dtype if x.is_floating_point() else None).contiguous()


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of `fit` and those of `HELP`."""
    parser = options_parser()
    parser.add_argument("--output")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--weights", choices=WEIGHTS, default="trained")
    return run_with_config(arguments, HELP, parser, _export)


def _export(options: argparse.Namespace, config: ParsedConfig) -> int:
    if options.output is None:
        raise ConfigError("export needs --output FILE, a .safetensors or .pth file to write")
    model, _ = config.build()
    average = options.weights == "average"
    if average and model.average is None:
        raise ConfigError("--weights average: this configuration has no average, its model.ema_decay is null")
    with reraise_as(StartError, ValueError, OSError):
        if checkpoint := config.get("ckpt_path"):
            load_checkpoint(checkpoint, model, model.saved_tensors())
        with model.evaluator.averaged() if average else nullcontext():
            written = export_policy(model.policy, options.output, None if options.dtype is None else dtype_named(options.dtype))
    print(f"{written}: {written.stat().st_size / 2**20:.1f} MiB")
    return 0
