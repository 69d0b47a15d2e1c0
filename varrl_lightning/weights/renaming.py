"""Gives the tensors of a published file the names that they have in a model of another library, every one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from varrl_lightning.weights.files import shortened
from varrl_lightning.weights.loading import load_strictly
from varrl_lightning.weights.sizes import dtype_named


def renamed(
    tensors: Mapping[str, Tensor], names: Mapping[str, Sequence[str]], source: str, what: str, transposed: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The tensors by their names in the model; none is missing and none is left over.

    Args:
        tensors: of the file.
        names: for each tensor of the file its name in the model, or several: equal parts along its first dimension, in order.
        source: the file, for messages.
        what: the kind of file that is expected.
        transposed: names in the file of matrices that the model has the other way round.

    Raises:
        ValueError: when a tensor is missing, unexpected or of a shape that cannot be so; lists them by their names in the file.
    """
    missing, unexpected = [x for x in names if x not in tensors], [x for x in tensors if x not in names]
    if missing or unexpected:
        said = [f"{kind} {shortened(found)}" for kind, found in (("missing", missing), ("unexpected", unexpected)) if found]
        raise ValueError(f"{source} is no {what}: {'; '.join(said)}. Give the file that its authors published")
    split = {x for x, own in names.items() if len(own) > 1}
    odd = [x for x in split if tensors[x].dim() == 0 or tensors[x].shape[0] % len(names[x])]
    odd += [x for x in transposed if tensors[x].dim() != 2]
    if odd:
        shapes = [f"{x} {list(tensors[x].shape)}" for x in sorted(odd)]
        raise ValueError(f"{source} is no {what}: these tensors have other shapes: {shortened(shapes)}")
    plain = {x: tensor.T if x in transposed else tensor for x, tensor in tensors.items()}
    parts = {x: plain[x].chunk(len(own)) if x in split else (plain[x],) for x, own in names.items()}
    return {own: part for x in names for own, part in zip(names[x], parts[x], strict=True)}


def frozen_model(architecture: Any, config: Any, tensors: Mapping[str, Tensor], source: str, dtype: str) -> nn.Module:
    """A model of transformers with these weights, all of them and no others; frozen, and in evaluation mode.

    Args:
        architecture: the model's class.
        config: its configuration.
        tensors: by the model's names.
        source: the file that they are from, for messages.
        dtype: of the weights, `float32`, `bfloat16` or `float16`.

    Raises:
        ValueError: as `load_strictly`.
    """
    with torch.device("meta"):
        model: nn.Module = architecture(config)
    for module in model.modules():  # what is counted and not learnt
        if isinstance(places := getattr(module, "position_ids", None), Tensor):
            module.position_ids = torch.arange(places.shape[-1])[None]
    load_strictly(model, tensors, source, dtype=dtype_named(dtype))
    return model.requires_grad_(False).eval()
