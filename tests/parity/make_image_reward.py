"""Writes data/image_reward.pt with the public ImageReward code: `python make_image_reward.py <checkout of THUDM/ImageReward>`.

Needs torch, torchvision, timm, fairscale and transformers 4.30, which its text encoder asks for. The classes are theirs and so are
all operations; only the sizes are smaller. Made at commit c1392c6 with torch 2.14.1 and torchvision 0.29.1 on a CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [sys.argv[1], str(HERE.parent)]
# Its packages' own __init__ load training code, and with it the libraries of other rewards.
for name in ("ImageReward", "ImageReward.models"):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(Path(sys.argv[1], *name.split(".")))]

from ImageReward.ImageReward import MLP, ImageReward, _transform  # noqa: E402
from ImageReward.models.BLIP.med import BertConfig, BertModel  # noqa: E402
from ImageReward.models.BLIP.vit import VisionTransformer  # noqa: E402
from parity.rules import TRANSFORMER, layout, weights  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

SIDE, WIDTH = 32, 192
SIZES = ((40, 40), (32, 32), (33, 71), (71, 33), (9, 13))
"""Height and width: square, the model's own, wide, tall, small."""
PROMPTS = ("a cat", "the word 'TEA' on a cup [ENC]", "cat " * 60)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "the", "word", "on", "cup", "'", "t", "##e", "##a"]
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "max_position_embeddings": 48,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "add_cross_attention": True,
    "encoder_width": WIDTH,
    "vocab_size": len(VOCABULARY) + 2,
}
SMALL = {
    "blip.visual_encoder.patch_embed.proj.*": 0.02,
    "blip.visual_encoder.cls_token": 0.02,
    "blip.visual_encoder.pos_embed": 0.02,
    "blip.text_encoder.embeddings.*_embeddings.weight": 0.05,
    "blip.visual_encoder.blocks.0.*.bias": 0.02,
}
"""Factors by which norms get small numbers, so that their epsilons matter."""


class Tiny(ImageReward):
    """Their model with other sizes: its constructor has fixed ones."""

    def __init__(self, config: str) -> None:
        nn.Module.__init__(self)
        self.device, self.mean, self.std = "cpu", 0.16717362830052426, 1.0333394966054072
        self.blip = nn.Module()
        self.blip.visual_encoder = VisionTransformer(SIDE, 16, embed_dim=WIDTH, depth=2, num_heads=3, drop_path_rate=0.1)
        self.blip.text_encoder = BertModel(BertConfig.from_json_file(config), add_pooling_layer=False)
        self.blip.vision_proj, self.blip.text_proj = nn.Linear(WIDTH, 8), nn.Linear(TEXT["hidden_size"], 8)
        self.mlp = MLP(TEXT["hidden_size"])


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    coarse = [torch.rand(1, 3, 5, 5, generator=generator) for _ in SIZES]
    plain = [nn.functional.interpolate(x, size)[0] for x, size in zip(coarse, SIZES, strict=True)]
    return [((0.8 * x + 0.2 * torch.rand(x.shape, generator=generator)) * 255).round().byte() for x in plain]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (config := Path(folder, "med_config.json")).write_text(json.dumps(TEXT))
        (vocabulary := Path(folder, "vocab.txt")).write_text("\n".join(VOCABULARY))
        model, tokenizer = Tiny(str(config)).eval(), BertTokenizer(str(vocabulary))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    kept = layout(model.state_dict(), SMALL)
    model.load_state_dict(weights(kept, TRANSFORMER))
    prepare, images = _transform(SIDE), pictures()
    pixels = torch.stack([prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    tokens = tokenizer(list(PROMPTS), padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        pairs = list(zip(tokens.input_ids[:, None], tokens.attention_mask[:, None], strict=True))
        rows = [[model.score_gard(ids, mask, picture[None]).item() for ids, mask in pairs] for picture in pixels]
    data = {"layout": kept, "images": images, "prompts": PROMPTS, "vocabulary": VOCABULARY, "ids": tokens.input_ids.tolist()}
    torch.save(data | {"pixels": pixels, "scores": torch.tensor(rows)}, HERE / "data" / "image_reward.pt")
    print(rows)


if __name__ == "__main__":
    main()
