"""Three tensors in files of every form, and how to compare what was read of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([3, 1]), "c": torch.ones(2, dtype=torch.bfloat16)}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor] = TENSORS) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(x, wanted[k]) and x.dtype == wanted[k].dtype for k, x in found.items())


def write_shards(folder: Path, ending: str, index: str) -> None:
    """The three tensors in two files, as transformers writes them."""
    save: Callable[[Any, Path], None] = save_file if ending == "safetensors" else torch.save
    homes = {"a.weight": f"part-1.{ending}", "b": f"part-2.{ending}", "c": f"part-2.{ending}"}
    for shard in set(homes.values()):
        save({name: x for name, x in TENSORS.items() if homes[name] == shard}, folder / shard)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": homes}))
