"""Tiny random weights of rewards that are models, in the layouts in which they are published, and the rewards made of them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity.rules import TRANSFORMER, weights
from PIL import Image
from text_encoders.tiny_encoders import write_clip
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from tests.rewards.photos import photos
from varrl_lightning.types import Prompt

PARITY = Path(__file__).parents[1] / "parity" / "data"
SIGLIP_SIDE, SIGLIP_LENGTH, SIGLIP_END = 16, 12, 1
DINO_SIDE = 28
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_plain_clip(folder: Path) -> Path:
    return write_clip(folder, width=16, seed=10, pad="<|endoftext|>", merged=True)


def write_siglip(folder: Path, tokenizer_class: str = "SiglipTokenizer", **settings: Any) -> Path:
    """A SigLIP of two layers. Its tokenizer knows plain letters and two words; what else a text holds is unknown to it."""
    words = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), (",", -3.0)]
    letters = [(letter, -3.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram([*words, *letters, ("▁cat", -1.5), ("▁the", -1.2), ("C", -3.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", SIGLIP_END)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>", model_max_length=64
    ).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace("TokenizersBackend", tokenizer_class))
    if settings:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 33, "max_position_embeddings": SIGLIP_LENGTH}
    torch.manual_seed(3)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=sizes | {"image_size": SIGLIP_SIDE, "patch_size": 4}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
        model.logit_scale.fill_(math.log(8))
        model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    return folder


def write_bert(folder: Path, vocabulary: list[str]) -> Path:
    """A tokenizer as that of uncased BERT is published: its settings name no padding."""
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))
    return folder


def write_image_reward(folder: Path) -> Path:
    """The tokenizer in a folder of its own, and the weights as they are published: tensors alone."""
    data: dict[str, Any] = torch.load(PARITY / "image_reward.pt")
    write_bert(folder / "tokenizer", data["vocabulary"])
    torch.save(weights(data["layout"], TRANSFORMER), folder / "ImageReward.pt")
    return folder


def write_hpsv2(folder: Path) -> Path:
    """The tokenizer in a folder of its own, and the weights as they are published: a state dict beside other things."""
    write_plain_clip(folder / "tokenizer")
    state = weights(torch.load(PARITY / "hpsv2.pt")["layout"], TRANSFORMER)
    torch.save({"epoch": 1, "name": "hps", "state_dict": state}, folder / "hps.pt")
    return folder


def write_dino(folder: Path) -> Path:
    """A model of two blocks, patches of 14 pixels, and three pictures."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=DINO_SIDE, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    for number, picture in enumerate(photos(3, 37, 45, seed=5)):
        Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(folder / f"{number}.png")
    return folder


class ImprovedPredictor(nn.Module):
    """The layers of the improved predictor as its source has them: linear, with dropout between, numbered in one sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, 32, 16, 8, 4, 1)
        linear = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        dropped = [x for layer in linear[:3] for x in (layer, nn.Dropout(0.2))]
        self.layers = nn.Sequential(*dropped, *linear[3:])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def write_head(tmp_path: Path, width: int, linear: bool = False) -> Path:
    torch.manual_seed(3)
    module = nn.Linear(width, 1) if linear else ImprovedPredictor(width)
    torch.save(module.state_dict(), tmp_path / "head.pth")
    return tmp_path / "head.pth"


def _write_aesthetic(folder: Path) -> Path:
    write_head(write_plain_clip(folder), 8)
    return folder


@dataclass(frozen=True)
class Model:
    """A reward that is a model.

    Args:
        write: writes its weights into a folder.
        arguments: its arguments, given the folder.
        half: how far its score may be off with weights in bfloat16.
    """

    write: Callable[[Path], Path]
    arguments: Callable[[Path], dict[str, Any]]
    half: float


MODELS: dict[str, Model] = {
    "aesthetic": Model(_write_aesthetic, lambda folder: {"head": folder / "head.pth", "path": folder}, 0.05),
    "clip_score": Model(write_plain_clip, lambda folder: {"path": folder}, 0.05),
    "dino_similarity": Model(write_dino, lambda folder: {"path": folder, "folder": folder, "side": DINO_SIDE}, 0.05),
    "hpsv2": Model(write_hpsv2, lambda folder: {"path": folder / "hps.pt", "tokenizer": folder / "tokenizer"}, 0.02),
    "imagereward": Model(
        write_image_reward, lambda folder: {"path": folder / "ImageReward.pt", "tokenizer": folder / "tokenizer"}, 0.2
    ),
    "pickscore": Model(write_plain_clip, lambda folder: {"path": folder}, 0.2),
    "siglip_score": Model(write_siglip, lambda folder: {"path": folder}, 0.05),
}
"""Every reward of the registry that is a model, by its name there."""
TEXTS = ("a cat", "the word 'TEA' on a cup", "cat cat")


def model_prompts() -> Sequence[Prompt]:
    """Prompts that all of them can score."""
    return [Prompt(text, extra={"reference": f"{number}.png"}) for number, text in enumerate(TEXTS)]
