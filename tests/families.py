"""Tiny policies of each model family, from files of the published layouts, and what a recipe says to load them.

A builder writes the files of a variant into a folder of their own under the folder given, unless they are there already: with the
fixture `weights_folder` once a session. A test that changes files writes its own with `write_…`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from parity import rules
from parity.make_infinity import LENS, NEGATIVE_LENS, packed
from parity.make_infinity import state as infinity_state
from parity.seeded import seeded, seeded_state
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config

from tests.tiny import PROMPTS, tiny_policy
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.infinity import InfinityPolicy
from varrl_lightning.policies.llm_prefix import LLMPrefixPolicy
from varrl_lightning.policies.lora import add_lora
from varrl_lightning.policies.state import Cond
from varrl_lightning.policies.switti import SwittiPolicy
from varrl_lightning.policies.tokenflow import NEGATIVE, TokenFlowPolicy
from varrl_lightning.policies.var import ImageNetVARPolicy
from varrl_lightning.schedule import Schedule
from varrl_lightning.text_encoders import EncodedTexts
from varrl_lightning.tokenizers.tokenflow_vq import TokenFlowVQ
from varrl_lightning.types import Prompt

DATA = Path(__file__).parent / "parity" / "data"
Files = tuple[Path, Path]
"""The transformer's and the tokenizer's."""
Made = tuple[VARPolicy, Cond]


def read(name: str) -> dict[str, Any]:
    """What the public code computed, and the layout of its files."""
    found: dict[str, Any] = torch.load(DATA / f"{name}.pt", weights_only=True)
    return found


def write(folder: Path, data: Mapping[str, Any]) -> Files:
    """The two files of a family whose data holds both layouts, as they are published."""
    files = folder / "transformer.pth", folder / "tokenizer.pth"
    for path, name, seed in zip(files, ("transformer", "tokenizer"), (rules.TRANSFORMER, rules.TOKENIZER), strict=True):
        torch.save(rules.weights(data["layouts"][name], seed), path)
    return files


def once(folder: Path, name: str, write: Callable[[Path, Any], Files]) -> Files:
    """The files of a variant, written when they are first asked for."""
    own = folder / name
    if not own.exists():
        own.mkdir()
        write(own, read(name))
    return own / "transformer.pth", own / "tokenizer.pth"


def disturbed(policy: VARPolicy) -> VARPolicy:
    """Adapted, as after some training."""
    torch.manual_seed(0)
    for name, parameter in add_lora(policy, rank=2, alpha=4.0).transformer.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.02 * torch.randn_like(parameter)
    return policy


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest wanted value."""
    return float((found - wanted).detach().abs().max() / wanted.abs().max())


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def lettering(folder: Path) -> Made:
    policy = tiny_policy()
    return policy, policy.encode_prompts(PROMPTS[:2])


# --- VAR --------------------------------------------------------------------------------------------------------------------

VAR_PROMPTS = [Prompt("goldfish", id="a", label=3), Prompt("hen", id="b", label=7)]


def load_var(folder: Path, variant: str = "l2norm", **options: Any) -> ImageNetVARPolicy:
    files = once(folder, f"var_{variant}", write)
    return ImageNetVARPolicy.from_pretrained(*files, num_heads=read(f"var_{variant}")["config"]["num_heads"], **options)


def var(folder: Path, **options: Any) -> Made:
    policy = load_var(folder, **options)
    return policy, policy.encode_prompts(VAR_PROMPTS)


# --- Switti -----------------------------------------------------------------------------------------------------------------


class MadeUpFeatures(nn.Module):
    """In place of CLIP."""

    def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
        found = [rules.encoded(text) for text in texts]
        return {name: torch.stack([x[name] for x in found]) for name in found[0]}


@cache
def switti_data(variant: str) -> dict[str, Any]:
    return read(f"switti_{variant}")


def load_switti(folder: Path, variant: str = "default", **options: Any) -> SwittiPolicy:
    config = switti_data(variant)["config"]
    known = {name: config[name] for name in ("num_heads", "rope_theta", "rope_size")}
    return SwittiPolicy.from_pretrained(
        *once(folder, f"switti_{variant}", write), **({"text_encoder": MadeUpFeatures()} | known | options)
    )


def switti(folder: Path, **options: Any) -> Made:
    policy = load_switti(folder, **options)
    return policy, policy.encode_prompts([Prompt("a cat"), Prompt("a dog", negative="a cat")])


def autoregressive_switti(folder: Path) -> Made:
    policy = load_switti(folder, "ar")
    return policy, policy.encode_prompts([Prompt(text) for text in switti_data("ar")["prompts"]])


# --- Infinity ---------------------------------------------------------------------------------------------------------------

INFINITY_PROMPTS = [Prompt("five pieces", negative="seven pieces"), Prompt("nine pieces", negative="three pieces")]


class Texts(nn.Module):
    """The features that the public code was given, in place of T5."""

    def __init__(self) -> None:
        super().__init__()
        texts = [p.text for p in INFINITY_PROMPTS] + [p.negative for p in INFINITY_PROMPTS]
        features = [*packed("text", LENS)[0].split(LENS), *packed("negative", NEGATIVE_LENS)[0].split(NEGATIVE_LENS)]
        self.features = dict(zip(texts, features, strict=True))

    def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
        found = [self.features[text] for text in texts]
        # What is padded must not be seen, so it is no zero.
        return {
            "text": pad_sequence(found, batch_first=True, padding_value=7.0),
            "mask": pad_sequence([torch.ones(len(x), dtype=torch.bool) for x in found], batch_first=True),
        }


def write_infinity(folder: Path, data: Mapping[str, Any]) -> Files:
    torch.save(infinity_state(data["shapes"]), folder / "transformer.pth")
    torch.save({"vae": infinity_state(data["vae_shapes"])}, folder / "tokenizer.pth")
    return folder / "transformer.pth", folder / "tokenizer.pth"


def load_infinity(folder: Path, name: str, **options: Any) -> InfinityPolicy:
    variant = read(f"infinity_{name}")["variant"]
    known = {
        "num_heads": None if variant["extra"].get("cos_attn", True) else variant["heads"],
        "rope_normalisation": variant["rope"],
        "level_embedding": "first" if variant["first_block_only"] else "every",
    }
    return InfinityPolicy.from_pretrained(
        *once(folder, f"infinity_{name}", write_infinity), **({"text_encoder": Texts()} | known | options)
    )


def recorded_scales(policy: InfinityPolicy, data: Mapping[str, Any]) -> Schedule:
    """The few scales that the public code was run on."""
    return Schedule(tuple(tuple(grid) for grid in data["grids"]), (policy.stride, policy.stride))


def infinity(folder: Path, **options: Any) -> Made:
    policy = load_infinity(folder, "published_8b", **options)
    short = recorded_scales(policy, read("infinity_published_8b"))
    return policy, replace(policy.encode_prompts(INFINITY_PROMPTS), schedule=short)


# --- TokenFlow --------------------------------------------------------------------------------------------------------------

TOKENFLOW_TEXTS = ("a portrait", "a cow", "northern lights over a range")
TOKENFLOW_PROMPTS = [Prompt(text) for text in TOKENFLOW_TEXTS]


def write_tokenflow(folder: Path, data: Mapping[str, Any]) -> Files:
    """The two files, the tokenizer's nested as it is published."""
    config, transformer = data["config"], rules.weights(data["layouts"]["transformer"], rules.TRANSFORMER)
    transformer["image_token_start"] = torch.tensor(config["text_tokens"])
    transformer["image_token_end"] = torch.tensor(config["text_tokens"] + config["vocab_size"] - 1)
    torch.save(transformer, folder / "transformer.pth")
    tokenizer = rules.weights(data["layouts"]["tokenizer"], rules.TOKENIZER)
    tokenizer |= {"decoder_vqkd.norm.weight": torch.ones(3), "quantize.codebook_used": torch.zeros(5)}
    torch.save({"ema": tokenizer, "steps": 7}, folder / "tokenizer.pth")
    return folder / "transformer.pth", folder / "tokenizer.pth"


def tokenflow_of(files: Files, data: Mapping[str, Any], **options: Any) -> TokenFlowPolicy:
    config = data["config"]
    ids = dict(zip(TOKENFLOW_TEXTS, data["texts"], strict=True)) | {NEGATIVE: data["negative"]}
    options = {"text_encoder": ids, "schedule": config["sides"]} | options
    options |= {name: config[name] for name in ("rope_theta", "rms_norm_eps")}
    return TokenFlowPolicy.from_pretrained(*files, **options)


def load_tokenflow(folder: Path, variant: str, **options: Any) -> TokenFlowPolicy:
    return tokenflow_of(once(folder, f"tokenflow_{variant}", write_tokenflow), read(f"tokenflow_{variant}"), **options)


def tokenflow(folder: Path, **options: Any) -> Made:
    policy = load_tokenflow(folder, "grouped", **options)
    return policy, policy.encode_prompts(TOKENFLOW_PROMPTS)


# --- language models that draw ----------------------------------------------------------------------------------------------

LLM_SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLM_CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config}
LLM_SIDES = (1, 2, 3, 4)
LLM_IDS = {"": [], "a cow": [7, 8], "a cow in the rain": [7, 8, 9, 10, 11], "snow": [12]}
LLM_PROMPTS = [Prompt(text) for text in ("a cow", "a cow in the rain", "snow")]


def llm_tokenizer() -> TokenFlowVQ:
    tokenizer = TokenFlowVQ(24, (6, 4), 8, (32, 32), 1, (32, 32), 1, (64, 1, 2, 4))
    tokenizer.load_state_dict(seeded_state({name: x.shape for name, x in tokenizer.state_dict().items()}, seed=3))
    return tokenizer


def plain_llm(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(LLM_CONFIGS[kind](**LLM_SIZES))


def load_llm_prefix(kind: str = "qwen2", **options: Any) -> LLMPrefixPolicy:
    options = {"text_encoder": LLM_IDS, "schedule": LLM_SIDES} | options
    policy = LLMPrefixPolicy.from_backbone(plain_llm(kind), llm_tokenizer(), **options)
    fresh = {name: x for name, x in policy.transformer.state_dict().items() if not name.startswith("backbone.")}
    policy.transformer.load_state_dict(seeded_state({n: x.shape for n, x in fresh.items()}), strict=False)
    return policy


def llm_prefix(folder: Path) -> Made:
    """Texts of several lengths, fewer heads of keys than of queries."""
    policy = load_llm_prefix()
    return policy, policy.encode_prompts(LLM_PROMPTS)


FAMILIES: dict[str, Callable[[Path], Made]] = {
    "lettering": lettering,
    "var": var,
    "infinity": infinity,
    "switti": switti,
    "switti_ar": autoregressive_switti,
    "tokenflow": tokenflow,
    "llm_prefix": llm_prefix,
}
"""A builder of each family, which gives a policy and the conditions of its prompts."""


# --- what a recipe says -----------------------------------------------------------------------------------------------------

RECIPE_WORDS = ("OPEN", "SALE", "EXIT", "MENU")
RECIPE_PROMPTS = [{"text": f'a sign "{word}"', "label": label} for label, word in enumerate(RECIPE_WORDS)]
RECIPE_VALIDATION = {"text": 'a sign "SHOP"', "label": 5}
RECIPE_TEXTS = ["", *(prompt["text"] for prompt in RECIPE_PROMPTS), RECIPE_VALIDATION["text"]]


class Features(nn.Module):
    """Made-up features of a text, of an encoder's widths."""

    def __init__(self, text: tuple[int, int], pooled: int | None = None) -> None:
        super().__init__()
        self.text, self.pooled = text, pooled

    def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
        (text,) = texts
        found = {"text": seeded(text, self.text)[None], "mask": torch.ones(1, self.text[0], dtype=torch.bool)}
        return found if self.pooled is None else found | {"pooled": seeded(f"{text} ", (self.pooled,))[None]}


def _named(files: Files) -> dict[str, Any]:
    return {"path": str(files[0]), "tokenizer": str(files[1])}


def _encoded(folder: Path, encoder: nn.Module) -> str:
    EncodedTexts.save(encoder, RECIPE_TEXTS, folder / "texts.safetensors")
    return str(folder / "texts.safetensors")


def _var_arguments(folder: Path) -> dict[str, Any]:
    return _named(write(folder, read("var_l2norm")))


def _switti_arguments(folder: Path) -> dict[str, Any]:
    data = switti_data("default")
    sizes = {name: data["config"][name] for name in ("num_heads", "rope_theta", "rope_size")}
    return _named(write(folder, data)) | sizes | {"text_encoder": _encoded(folder, Features((77, 2048), 1280))}


def _infinity_arguments(name: str) -> Callable[[Path], dict[str, Any]]:
    def arguments(folder: Path) -> dict[str, Any]:
        data = read(name)
        level = "first" if data["variant"]["first_block_only"] else "every"
        encoder = _encoded(folder, Features((5, data["shapes"]["text_norm.weight"][0])))
        return _named(write_infinity(folder, data)) | {"text_encoder": encoder, "pixels": "0.06M", "level_embedding": level}

    return arguments


def _tokenflow_arguments(folder: Path) -> dict[str, Any]:
    data = read("tokenflow_plain")
    ids = {text: [5 + i, 7, 9, 11] for i, text in enumerate([*RECIPE_TEXTS, NEGATIVE])}
    sizes = {name: data["config"][name] for name in ("rope_theta", "rms_norm_eps")}
    start = {"image_token_start": data["config"]["text_tokens"], "schedule": list(data["config"]["sides"])}
    return _named(write(folder, data)) | {"text_encoder": ids} | sizes | start


def _llm_prefix_arguments(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = {name: LLM_SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)
    sides = [1, 2, 3, 4, 6]
    save_file(rules.weights(read("var_plain")["layouts"]["tokenizer"], rules.TOKENIZER), folder / "visual.safetensors")
    policy = LLMPrefixPolicy.from_backbone(LlamaForCausalLM(config), folder / "visual.safetensors", {}, schedule=sides)
    save_file(policy.published(policy.transformer.state_dict()), folder / "llm.safetensors")
    config.save_pretrained(folder)
    return {
        **_named((folder / "llm.safetensors", folder / "visual.safetensors")),
        "backbone": str(folder),
        "text_encoder": {text: [1 + i, 2] for i, text in enumerate(RECIPE_TEXTS)},
        "schedule": sides,
    }


RECIPE_ARGUMENTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "var_d16": _var_arguments,
    "switti": _switti_arguments,
    "infinity_2b": _infinity_arguments("infinity_published_2b"),
    "infinity_8b": _infinity_arguments("infinity_published_8b"),
    "tokenflow": _tokenflow_arguments,
    "llm_prefix": _llm_prefix_arguments,
}
"""The arguments by which a family's recipe loads a tiny model, whose files they write."""


def innermost(policy: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the family's own class, inside of those of an adapter."""
    arguments: dict[str, Any] = policy["init_args"]
    return innermost(arguments["policy"]) if "policy" in arguments else arguments
