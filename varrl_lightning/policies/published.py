"""The public models at their real sizes but without weights, recognised by the names of their files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.infinity import InfinityPolicy
from varrl_lightning.policies.infinity_sizes import Sizes
from varrl_lightning.policies.infinity_transformer import InfinityTransformer
from varrl_lightning.policies.lora import add_lora
from varrl_lightning.policies.switti import PUBLISHED, SwittiPolicy
from varrl_lightning.policies.switti_transformer import CropFrequencies, SwittiTransformer
from varrl_lightning.policies.var import ImageNetVARPolicy, VARTransformer
from varrl_lightning.schedule import VAR_256, VAR_512, Schedule
from varrl_lightning.tokenizers.bsq import BSQTokenizer
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.weights.sizes import dtype_named

T5_XL, CLIP_PAIR = 1_223_527_424, 123_060_480 + 694_659_840
"""Weights of Flan-T5-XL's encoder, and of the text models of CLIP-L and CLIP-bigG."""
LLAMA_2_7B: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
QWEN_2_5_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}


class StandIn(nn.Module):
    """A placeholder for a text encoder: of the same size, with outputs of the same shapes.

    Args:
        weights: how many it has, in fp32; 0 for texts that are read encoded from a file.
        width: features of a word piece.
        length: word pieces of every text; None for one per three letters.
        pooled: features of the pooled text; 0 where the encoder has none.
    """

    def __init__(self, weights: int, width: int, length: int | None = None, pooled: int = 0) -> None:
        super().__init__()
        self.register_buffer("weights", torch.empty(weights, device="meta"))
        self.width, self.length, self.pooled = width, length, pooled

    def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Zero features of texts, and their mask."""
        length = self.length or min(max(len(text) for text in texts) // 3 + 2, 512)
        features = {"text": torch.zeros(len(texts), length, self.width), "mask": torch.ones(len(texts), length, dtype=torch.bool)}
        return features | ({"pooled": torch.zeros(len(texts), self.pooled)} if self.pooled else {})


class AnyText(Mapping[str, list[int]]):
    """Ids of every text: one per three letters."""

    def __getitem__(self, text: str) -> list[int]:
        return [1] * (len(text) // 3 + 2)

    def __contains__(self, text: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def published(spec: Any) -> VARPolicy | None:
    """The policy of a configuration on the `meta` device, if it names a public model; None otherwise.

    Args:
        spec: `class_path` and `init_args`, as `model.policy` has them.
    """
    arguments = dict(vars(spec.init_args)) if getattr(spec, "init_args", None) else {}
    name = str(getattr(spec, "class_path", "")).removesuffix(".from_pretrained").rpartition(".")[2]
    if name == "add_lora":
        inner = published(arguments.pop("policy"))
        return None if inner is None else add_lora(inner, **arguments)
    build = FAMILIES.get(name)
    with torch.device("meta"):
        policy = build(arguments) if build else None
    if policy is not None and arguments.get("dtype"):
        policy.transformer.to(dtype_named(arguments["dtype"]))
    return policy


def _text(given: Any, weights: int, *sizes: int | None) -> StandIn:
    """A placeholder with the encoder's weights; without weights where texts are read encoded from a file."""
    return StandIn(0 if given is None or str(given).endswith(".safetensors") else weights, *sizes)  # type: ignore[arg-type]


def _infinity(given: Mapping[str, Any]) -> VARPolicy | None:
    path = Path(str(given["path"])).name
    large = path.startswith("infinity_8b")
    if not large and not path.startswith("infinity_2b"):
        return None
    widths = (128, 256, 512, 512)
    tokenizer = BSQTokenizer(14, encoder_widths=widths, decoder_widths=widths) if large else BSQTokenizer()
    options = {name: given[name] for name in ("pixels", "rope_normalisation") if given.get(name) is not None}
    checkpointing = bool(given.get("gradient_checkpointing"))
    transformer = InfinityTransformer(_infinity_sizes(large), given.get("level_embedding", "first"), checkpointing)
    return InfinityPolicy(transformer, tokenizer, _text(given.get("text_encoder"), T5_XL, 2048), **options)


def _infinity_sizes(large: bool) -> Sizes:
    """Sizes of Infinity-8B, or of Infinity-2B."""
    width, bits = (3584, 56) if large else (2048, 32)
    return Sizes(
        width=width,
        bits=bits,
        chunks=(10,) * 4 if large else (4,) * 8,
        depth=40 if large else 32,
        heads=width // 128,
        text_width=2048,
        text_length=512,
        pool_heads=16,
        levels=15,
        hidden=4 * width,
        scale_shape=(1, width // 128, 1, 1),
        gated=False,
        rms=False,
        input_norm=False,
        shared_aln=True,
        cross_scale=False,
        head_aln=True,
        head_depth=1,
    )


def _var(given: Mapping[str, Any]) -> VARPolicy | None:
    name = Path(str(given["path"])).stem
    if name not in ("var_d16", "var_d20", "var_d24", "var_d30", "var_d36"):
        return None
    depth = int(name[-2:])
    sides = [side for side, _ in (VAR_512 if depth == 36 else VAR_256).grids]
    transformer = VARTransformer(
        width=64 * depth,
        depth=depth,
        heads=depth,
        hidden=256 * depth,
        sides=sides,
        shared=depth == 36,
        gradient_checkpointing=bool(given.get("gradient_checkpointing")),
    )
    return ImageNetVARPolicy(transformer, VQVAE(), sides)


def _switti(given: Mapping[str, Any]) -> VARPolicy | None:
    name = str(given["path"]).rpartition("/")[2]
    if name not in ("Switti", "Switti-AR", "Switti-1024", "Switti-1024-AR"):
        return None
    sides = PUBLISHED[14 if "1024" in name else 10]
    transformer = SwittiTransformer(scales=len(sides), gradient_checkpointing=bool(given.get("gradient_checkpointing")))
    with torch.device("cpu"):  # not on meta: it encodes prompts
        crop = CropFrequencies(1920)
    encoder = _text(given.get("text_encoder"), CLIP_PAIR, 2048, 77, 1280)
    return SwittiPolicy(transformer, VQVAE(), sides, encoder, crop, name.endswith("AR"))


def _tokenflow(given: Mapping[str, Any]) -> VARPolicy | None:
    if str(given["path"]).rpartition("/")[2] != "TokenFlow-t2i":
        return None
    from transformers import LlamaConfig

    from varrl_lightning.policies.tokenflow import TokenFlowPolicy, TokenFlowTransformer
    from varrl_lightning.policies.tokenflow_llama import tokenflow_llama
    from varrl_lightning.tokenizers.tokenflow_vq import TOKENFLOW_256, TokenFlowVQ

    tokenizer = TokenFlowVQ()
    config = LlamaConfig(vocab_size=32004 + tokenizer.vocab_size, **LLAMA_2_7B)
    llama = tokenflow_llama(config, tokenizer.channels, 2, len(TOKENFLOW_256), TOKENFLOW_256.offsets[-1])
    transformer = TokenFlowTransformer(llama, 32004, tokenizer.vocab_size, bool(given.get("gradient_checkpointing")))
    return TokenFlowPolicy(transformer, tokenizer, AnyText(), TOKENFLOW_256)


def _llm_prefix(given: Mapping[str, Any]) -> VARPolicy | None:
    if not str(given.get("backbone", "")).startswith("Qwen/Qwen2.5-7B"):
        return None
    from transformers import AutoModel, Qwen2Config

    from varrl_lightning.policies.llm_prefix import LLMPrefixPolicy, as_schedule
    from varrl_lightning.policies.visual_language_model import VisualLanguageModel

    tokenizer = VQVAE()  # no tokenizer of this family is published, as no weights are
    schedule = given.get("schedule") or inspect.signature(LLMPrefixPolicy.from_pretrained).parameters["schedule"].default
    if isinstance(schedule, Namespace):  # a parsed default
        schedule = Schedule(**vars(schedule))
    longest = as_schedule(schedule, tokenizer)
    decoder = AutoModel.from_config(Qwen2Config(**QWEN_2_5_7B))  # type: ignore[no-untyped-call]
    sizes = (tokenizer.vocab_size, tokenizer.channels, len(longest))
    transformer = VisualLanguageModel(decoder, *sizes, bool(given.get("gradient_checkpointing")))
    return LLMPrefixPolicy(transformer, tokenizer, AnyText(), longest)


FAMILIES: dict[str, Callable[[Mapping[str, Any]], VARPolicy | None]] = {
    "InfinityPolicy": _infinity,
    "ImageNetVARPolicy": _var,
    "SwittiPolicy": _switti,
    "TokenFlowPolicy": _tokenflow,
    "LLMPrefixPolicy": _llm_prefix,
}
