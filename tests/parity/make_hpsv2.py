"""Writes data/hpsv2.pt with the public HPSv2 code: `python make_hpsv2.py <checkout of tgxs002/HPSv2> <folder of a tokenizer>`.

The tokenizer is the one that tests/rewards/test_hpsv2.py writes (`write_clip`); its ids are kept. Needs torch, torchvision 0.17 or
newer, timm, ftfy, regex, pandas and transformers 5. Made at commit 866735e with torch 2.14.1 and torchvision 0.29.1 on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [sys.argv[1], str(HERE.parent)]
# Its packages' own __init__ ask for a browser's and a desktop's libraries, which the model does not use.
for name in ("hpsv2", "hpsv2.src"):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(Path(sys.argv[1], *name.split(".")))]
sys.modules["turtle"] = ModuleType("turtle")
sys.modules["turtle"].forward = None  # type: ignore[attr-defined]

from hpsv2.src.open_clip.model import CLIP  # noqa: E402
from hpsv2.src.open_clip.transform import image_transform  # noqa: E402
from parity.rules import TRANSFORMER, layout, weights  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

SIDE = 28
SIZES = ((40, 40), (28, 28), (33, 71), (71, 23), (9, 13))
"""Height and width: square, the model's own, wide, tall, small."""
PROMPTS = ("a cat", "the word 'TEA' on a cup", "cat " * 200)
VISION = {"image_size": SIDE, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14}
TEXT = {"context_length": 77, "width": 128, "heads": 2, "layers": 2}


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    coarse = [torch.rand(1, 3, 5, 5, generator=generator) for _ in SIZES]
    plain = [torch.nn.functional.interpolate(x, size)[0] for x, size in zip(coarse, SIZES, strict=True)]
    return [((0.8 * x + 0.2 * torch.rand(x.shape, generator=generator)) * 255).round().byte() for x in plain]


def main() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(sys.argv[2])
    model = CLIP(32, VISION, TEXT | {"vocab_size": len(tokenizer)}, output_dict=True).eval()
    kept = layout(model.state_dict())
    model.load_state_dict(weights(kept, TRANSFORMER))
    tokens = [tokenizer(text, truncation=True, max_length=77).input_ids for text in PROMPTS]
    ids = torch.zeros(len(PROMPTS), 77, dtype=torch.long)
    for row, found in zip(ids, tokens, strict=True):
        row[: len(found)] = torch.tensor(found)
    prepare = image_transform(SIDE, is_train=False, resize_longest_max=True)
    images = pictures()
    pixels = torch.stack([prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.no_grad():
        out = model(pixels, ids)
    scores = out["image_features"] @ out["text_features"].T
    data = {"layout": kept, "images": images, "prompts": PROMPTS, "ids": tokens, "pixels": pixels, "scores": scores}
    torch.save(data, HERE / "data" / "hpsv2.pt")
    print(scores)


if __name__ == "__main__":
    main()
