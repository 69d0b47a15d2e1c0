"""`varrl export`: the trained weights as one file, in the layout that the model's own code reads."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
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
from varrl_lightning.policies.averaging import WeightAverage
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import cast_loss, has_adapter, merged_tensors, save_adapter
from varrl_lightning.weights.sizes import DTYPES, dtype_named

SUFFIXES = (".safetensors", ".pth")
WEIGHTS = ("trained", "average")
LAYOUTS = ("published", "peft")
SHORT = (torch.bfloat16, torch.float16)
"""Dtypes of fewer digits than an adapter has."""
HELP = """usage: varrl export --config FILE --ckpt_path FILE --output FILE [--dtype float32|bfloat16|float16]
                    [--weights trained|average] [--layout published|peft]

Writes the policy of a run as one file in its family's published layout, which the family's public code and from_pretrained load:
  --config     config.yaml of the run's folder
  --ckpt_path  a checkpoint of the run, or its last or best; without one, the policy as it was before training
  --output     a new file, .safetensors or .pth; with --layout peft, a new folder
  --dtype      dtype of the weights; by default that of the training, and float32 for a merged adapter and for the average
  --weights    the trained weights, or their average if the run has ema_decay; trained by default
  --layout     published, or peft: the adapter alone as a folder, which peft and add_lora(adapter=FOLDER) load
An adapter (LoRA) is merged into the weights in float32, then cast once; what the cast takes from it is measured and shown."""


def export_policy(
    policy: VARPolicy, path: str | Path, dtype: torch.dtype | None = None, weights: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a policy's transformer, adapter merged, in the published layout of its family.

    Warns where a cast to `dtype` takes some of the adapter's update away, with the share.

    Args:
        path: a file that does not exist, .safetensors or .pth.
        dtype: dtype of the floating-point weights; None for float32 where an adapter is merged or `weights` are given, since the
            policy's own may have fewer digits than these, and for the policy's elsewhere.
        weights: values to take in place of some of the policy's, by the names of the transformer's state dict: of an average.

    Raises:
        ValueError: when the file exists, or ends in neither.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"the output must end in {' or '.join(SUFFIXES)}, got {path}")
    if path.exists():
        raise ValueError(f"{path} exists; give another name, or remove it first")
    if dtype is None and (weights or has_adapter(policy)):
        dtype = torch.float32
    if dtype in SHORT and (loss := cast_loss(policy, dtype, weights)):
        warnings.warn(f"{path}: the cast to {str(dtype)[6:]} costs {loss}; float32 keeps all of it", stacklevel=2)
    trained = {name: _portable(x) for name, x in merged_tensors(policy, dtype, weights).items()}
    # The constants that a family adds are not trained weights: rounding them to `dtype` would change the model.
    tensors = {name: _portable(x) for name, x in policy.published(trained).items()}
    with replacing(path) as part:
        if path.suffix == ".safetensors":
            save_file(tensors, part, metadata={"format": "pt"})
        else:
            torch.save(tensors, part)
    return path


def _portable(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous()


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of `fit` and those of `HELP`."""
    parser = options_parser()
    parser.add_argument("--output")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--weights", choices=WEIGHTS, default="trained")
    parser.add_argument("--layout", choices=LAYOUTS, default="published")
    return run_with_config(arguments, HELP, parser, _export)


def _export(options: argparse.Namespace, config: ParsedConfig) -> int:
    if options.output is None:
        raise ConfigError("export needs --output: a .safetensors or .pth file to write, or a folder with --layout peft")
    checkpoint = config.checkpoint()
    model, _ = config.build()
    average = options.weights == "average"
    if average and model.average is None:
        raise ConfigError("--weights average: this configuration has no average, its model.ema_decay is null")
    with reraise_as(StartError, ValueError, OSError):
        if checkpoint:
            load_checkpoint(checkpoint, model, model.saved_tensors())
        weights = _of_transformer(model.average) if average and model.average is not None else None
        dtype = None if options.dtype is None else dtype_named(options.dtype)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            write = save_adapter if options.layout == "peft" else export_policy
            written = write(model.policy, options.output, dtype, weights)
    for warning in said:
        print(warning.message, file=sys.stderr)
    files = sorted(written.iterdir()) if written.is_dir() else [written]
    for file in files:
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
    return 0


def _of_transformer(average: WeightAverage) -> dict[str, Tensor]:
    """The averaged weights in the digits in which they are kept, by the names of the transformer's state dict."""
    start = "transformer."
    return {name.removeprefix(start): x for name, x in average.named_parameters() if name.startswith(start)}
