"""All families load what their own trainers wrote, policy and tokenizer, bit for bit what the published files give."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import rules
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from tests.families import (
    LLM_IDS,
    LLM_SIDES,
    LLM_SIZES,
    Files,
    llm_tokenizer,
    load_infinity,
    load_llm_prefix,
    load_switti,
    load_tokenflow,
    load_var,
    once,
    read,
    write,
    write_infinity,
    write_tokenflow,
)
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.infinity import InfinityPolicy
from varrl_lightning.policies.lettering import ASSETS, LetteringPolicy
from varrl_lightning.policies.llm_prefix import LLMPrefixPolicy, visual_tokenizer
from varrl_lightning.policies.var import ImageNetVARPolicy
from varrl_lightning.tokenizers.tokenflow_vq import TokenFlowVQ
from varrl_lightning.tokenizers.vqvae import VQVAE

Tensors = dict[str, Any]
Content = Callable[[Tensors, Tensors], Any]
"""A trainer's file, of the tensors of the transformer and of the tokenizer."""


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: x for name, x in tensors.items()}


def moments(tensors: Tensors) -> Any:
    """An optimizer's, by the names of weights: not to be taken for weights."""
    return {"state": {name: {"exp_avg": x, "step": 1} for name, x in tensors.items()}, "param_groups": [{"params": list(tensors)}]}


def by_var(transformer: Tensors, tokenizer: Tensors) -> Any:
    models = {"var_wo_ddp": transformer, "vae_local": tokenizer}
    trainer = {"config": {"prog_it": 0}, **models, "var_opt": {"optimizer": moments(transformer)}}
    return {"epoch": 4, "iter": 0, "trainer": trainer, "args": {"depth": 2, "seed": None}}


def by_infinity(transformer: Tensors, tokenizer: Tensors) -> Any:
    trainer = {"config": {}, "vae_local": tokenizer, "gpt_fsdp": transformer, "gpt_fsdp_opt": moments(transformer)}
    return {"args": {"pn": "1M"}, "epoch": 4, "iter": 10, "trainer": trainer, "acc_str": "", "milestones": [(1.0, 2.0)]}


def by_lightning(transformer: Tensors, tokenizer: Tensors) -> Any:
    return {"state_dict": prefixed("model._orig_mod.", transformer), "vae": prefixed("module.", tokenizer), "epoch": 4}


def by_deepspeed(transformer: Tensors, tokenizer: Tensors) -> Any:
    averaged = {"n_averaged": torch.tensor(3)} | prefixed("module.", tokenizer)
    return {"module": prefixed("_forward_module.", transformer), "model_ema": averaged}


FAMILIES: dict[str, tuple[str, Any, Callable[[Path], VARPolicy], Content]] = {
    "var": ("var_l2norm", write, load_var, by_var),
    "var, wrapped": ("var_l2norm", write, load_var, by_lightning),
    "infinity": ("infinity_published_2b", write_infinity, lambda folder: load_infinity(folder, "published_2b"), by_infinity),
    "infinity, wrapped": (
        "infinity_published_8b",
        write_infinity,
        lambda folder: load_infinity(folder, "published_8b"),
        by_lightning,
    ),
    "switti": ("switti_default", write, load_switti, by_lightning),
    "switti, wrapped": ("switti_ar", write, lambda folder: load_switti(folder, "ar"), by_deepspeed),
    "tokenflow": ("tokenflow_plain", write_tokenflow, lambda folder: load_tokenflow(folder, "plain"), by_deepspeed),
}


def in_one_file(files: Files, content: Content) -> None:
    """Put what a trainer writes in the place of both published files."""
    transformer, tokenizer = (torch.load(file, weights_only=True) for file in files)
    inner = next((tokenizer[name] for name in ("vae", "ema") if name in tokenizer), tokenizer)
    for file in files:
        torch.save(content(transformer, inner), file)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trainers_file_gives_both_models(
    name: str, weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant, write_files, load, content = FAMILIES[name]
    published = load(weights_folder)
    capsys.readouterr()
    files = once(tmp_path, variant, write_files)
    in_one_file(files, content)
    given = load(tmp_path)
    for part in ("transformer", "tokenizer"):
        found, wanted = (policy.get_submodule(part).state_dict() for policy in (given, published))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], x) for key, x in wanted.items()), part
    lines = capsys.readouterr().err.splitlines()
    assert [re.match(r"(.*): took the tensors of ", line)[1] for line in lines] == list(map(str, files))  # type: ignore[index]


def test_the_average_of_infinity_is_chosen_by_the_path(tmp_path: Path) -> None:
    files = once(tmp_path, "infinity_published_2b", write_infinity)
    transformer = torch.load(files[0], weights_only=True)
    average = {name: x + 1 for name, x in transformer.items()}
    torch.save({"trainer": {"gpt_fsdp": transformer, "gpt_ema_fsdp": average}}, files[0])
    with pytest.raises(ValueError, match=rf"choose one of {files[0]}::trainer/gpt_fsdp, {files[0]}::trainer/gpt_ema_fsdp$"):
        load_infinity(tmp_path, "published_2b")
    policy = InfinityPolicy.from_pretrained(f"{files[0]}::trainer/gpt_ema_fsdp", files[1])
    assert torch.equal(policy.transformer.state_dict()["cfg_uncond"], average["cfg_uncond"])


def test_loading_stays_strict(tmp_path: Path) -> None:
    files = once(tmp_path, "var_l2norm", write)
    transformer, tokenizer = (torch.load(file, weights_only=True) for file in files)
    changed = transformer | {"extra": torch.ones(1), "head.bias": torch.ones(3)}
    del changed["pos_start"]
    torch.save(by_var(prefixed("module.", changed), tokenizer), files[0])
    with pytest.raises(ValueError, match="does not fit VARTransformer") as error:
        load_var(tmp_path)
    assert [line.split()[:2] for line in str(error.value).splitlines()[1:]] == [
        ["misshaped", "head.bias:"],
        ["missing", "pos_start"],
        ["unexpected", "extra"],
    ]


def test_a_file_of_the_tokenizer_alone_is_no_policy(tmp_path: Path) -> None:
    files = once(tmp_path, "var_l2norm", write)
    torch.save({"trainer": {"vae_local": torch.load(files[1], weights_only=True)}}, files[0])
    with pytest.raises(ValueError, match=r"is no transformer of VAR's layout: it has no head\.weight"):
        ImageNetVARPolicy.from_pretrained(*files)


@pytest.mark.parametrize(("kind", "layout"), [(VQVAE, "var_l2norm"), (TokenFlowVQ, "tokenflow_plain")])
def test_the_visual_tokenizer_of_a_language_model(kind: type, layout: str, tmp_path: Path) -> None:
    tensors = rules.weights(read(layout)["layouts"]["tokenizer"], rules.TOKENIZER)
    torch.save({"trainer": {"vq_local": prefixed("module.", tensors), "llm": {"backbone.x": torch.ones(2)}}}, tmp_path / "x.pth")
    assert isinstance(visual_tokenizer(tmp_path / "x.pth"), kind)


def test_a_language_model_that_draws(tmp_path: Path) -> None:
    policy = load_llm_prefix("qwen2")
    content = {"model": prefixed("_orig_mod.module.", policy.transformer.state_dict()), "optimizer": {}, "global_step": 3}
    torch.save(content, tmp_path / "x.pth")
    arguments: dict[str, Any] = {"schedule": LLM_SIDES, "backbone": Qwen2Config(**LLM_SIZES)}
    for path in ("x.pth", "x.pth::model"):
        again = LLMPrefixPolicy.from_pretrained(f"{tmp_path}/{path}", llm_tokenizer(), LLM_IDS, **arguments)
        assert all(torch.equal(x, again.transformer.state_dict()[name]) for name, x in policy.transformer.state_dict().items())
    with pytest.raises(ValueError, match=r"is a file and has no config of the backbone"):
        LLMPrefixPolicy.from_pretrained(f"{tmp_path}/x.pth::model", llm_tokenizer(), LLM_IDS, schedule=LLM_SIDES)


def test_the_embedded_family(tmp_path: Path) -> None:
    tensors = load_file(ASSETS / "transformer.safetensors")
    save_file(prefixed("_orig_mod.", tensors), tmp_path / "compiled.safetensors")
    policy = LetteringPolicy.from_pretrained(tmp_path / "compiled.safetensors")
    assert all(torch.equal(x, tensors[name]) for name, x in policy.transformer.state_dict().items())
