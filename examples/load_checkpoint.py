"""Load a trained policy from a checkpoint and sample images: no Trainer, no configuration, no command line of this package.

    python examples/load_checkpoint.py runs/existing_pipeline/best.ckpt

A checkpoint names classes, which are imported to load it: as with any program, load only those of people you trust.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from varrl_lightning import VARGRPO


def draw(checkpoint: str, prompts: list[str], picture: Path) -> None:
    module = VARGRPO.load_from_checkpoint(checkpoint, map_location="cuda" if torch.cuda.is_available() else "cpu")
    images = module(prompts)  # (prompts, 3, height, width), RGB in [0, 1], the same for the same checkpoint and prompts
    side_by_side = torch.cat(list(images), dim=2).permute(1, 2, 0)
    Image.fromarray((side_by_side * 255).round().byte().cpu().numpy()).save(picture)
    print(f"after {module.updates_done} updates: {len(images)} pictures in {picture}")


if __name__ == "__main__":
    draw(sys.argv[1], ['a card that says "STONE"', 'a card that says "RIVER"'], Path(sys.argv[1]).with_suffix(".png"))
