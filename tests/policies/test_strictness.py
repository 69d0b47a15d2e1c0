"""Whatever kind of tensor is missing from a published file: the error says so, and nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import rules
from parity.make_infinity import state as infinity_state
from torch import Tensor

from tests.families import read
from varrl_lightning.policies.infinity import InfinityPolicy
from varrl_lightning.policies.switti import SwittiPolicy
from varrl_lightning.policies.tokenflow import TokenFlowPolicy
from varrl_lightning.policies.var import ImageNetVARPolicy
from varrl_lightning.tokenizers.bsq import BSQTokenizer
from varrl_lightning.tokenizers.tokenflow_vq import TokenFlowVQ
from varrl_lightning.tokenizers.vqvae import VQVAE

CHOICES = {
    "quant_resi": "a VQ-VAE may have fewer Phis, or none",
    "pos_1LC": "Switti has rotary positions in its place",
    "norm0_ve": "an Infinity may do without",
    "lfq.mask": "powers of two that no code here needs",
}
"""Tensors whose absence is a variant of its own; parts of a whole tensor list are still strict."""
Load = Callable[[Path], object]


def transformer(name: str) -> dict[str, Tensor]:
    return rules.weights(read(name)["layouts"]["transformer"], rules.TRANSFORMER)


def tokenizer(name: str) -> dict[str, Tensor]:
    return rules.weights(read(name)["layouts"]["tokenizer"], rules.TOKENIZER)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in ("var_l2norm", "switti_default", "tokenflow_plain"):
        torch.save(tokenizer(name), folder / f"{name}.pth")
    torch.save({"vae": infinity_state(read("infinity_published_2b")["vae_shapes"])}, folder / "infinity.pth")
    return {
        "var_l2norm": VQVAE.from_pretrained(folder / "var_l2norm.pth"),
        "switti_default": VQVAE.from_pretrained(folder / "switti_default.pth"),
        "tokenflow_plain": TokenFlowVQ.from_pretrained(folder / "tokenflow_plain.pth"),
        "infinity": BSQTokenizer.from_pretrained(folder / "infinity.pth"),
    }


def case(kind: str, tokenizers: dict[str, Any]) -> tuple[dict[str, Tensor], Load]:
    if kind == "var":
        return transformer("var_l2norm"), lambda path: ImageNetVARPolicy.from_pretrained(path, tokenizers["var_l2norm"])
    if kind == "switti":
        options = {"num_heads": read("switti_default")["config"]["num_heads"]}
        found = transformer("switti_default")
        return found, lambda path: SwittiPolicy.from_pretrained(path, tokenizers["switti_default"], **options)
    if kind == "infinity":
        found = infinity_state(read("infinity_published_2b")["shapes"])
        return found, lambda path: InfinityPolicy.from_pretrained(path, tokenizers["infinity"])
    if kind == "tokenflow":
        config = read("tokenflow_plain")["config"]
        options = {"schedule": list(config["sides"]), "image_token_start": config["text_tokens"]}
        found = transformer("tokenflow_plain")
        return found, lambda path: TokenFlowPolicy.from_pretrained(path, tokenizers["tokenflow_plain"], **options)
    if kind == "vqvae":
        return tokenizer("var_l2norm"), VQVAE.from_pretrained
    if kind == "tokenflow_vq":
        return tokenizer("tokenflow_plain"), TokenFlowVQ.from_pretrained
    return infinity_state(read("infinity_published_2b")["vae_shapes"]), BSQTokenizer.from_pretrained


@pytest.mark.parametrize("kind", ["var", "switti", "infinity", "tokenflow", "vqvae", "tokenflow_vq", "bsq"])
def test_any_missing_tensor_is_named(kind: str, tokenizers: dict[str, Any], tmp_path: Path) -> None:
    tensors, load = case(kind, tokenizers)
    # Names and shapes are what is checked: one number for each tensor keeps the many files small.
    tensors = {name: x if rules.is_computed(name) else x.new_zeros(()).expand(x.shape) for name, x in tensors.items()}
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    load(path)
    names = [name for name in tensors if not rules.is_computed(name) and not any(part in name for part in CHOICES)]
    assert len(names) > 20
    # One block, level or layer of a list is like another: one name of each kind.
    kinds = {re.sub(r"\d+", "N", name): name for name in reversed(names)}
    for name in kinds.values():
        torch.save({other: x for other, x in tensors.items() if other != name}, path)
        with pytest.raises(ValueError, match=r"missing|unexpected|it has no|no tensor of"):
            load(path)
