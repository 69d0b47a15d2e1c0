"""The published checkpoints by their names: the settings and the tokenizer that each was trained with."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varrl_lightning.policies.infinity_schedules import published_schedule
from varrl_lightning.schedule import VAR_256, VAR_512, Schedule, square
from varrl_lightning.tokenizers.tokenflow_vq import TOKENFLOW_256
from varrl_lightning.weights.files import find_weights

SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SIDES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
STRIDE = 16
"""Pixels per token of all published models."""
SAYS_NOTHING = {
    *("pth", "pt", "bin", "ckpt", "safetensors", "index", "json", "model", "models", "weight", "weights"),
    *("checkpoint", "checkpoints", "snapshots", "pytorch", "diffusion", "ema", "main"),
    *("fp32", "fp16", "bf16", "float32", "float16", "bfloat16", "half"),
}
"""Words that may be added to a published name, or stand alone: how the weights are stored, not which they are."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Published:
    """A published checkpoint of a transformer.

    Args:
        name: as published, without the ending of the file.
        tokenizer: the name of the tokenizer that it was trained with.
        settings: the arguments of `from_pretrained` that it was trained with and that fit other weights too.
    """

    name: str
    tokenizer: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _var(name: str, schedule: Schedule) -> Published:
    return Published(name, "vae_ch160v4096z32", {"sides": _sides(schedule)})


def _switti(name: str, sides: tuple[int, ...], autoregressive: bool) -> Published:
    unstored = {"num_heads": 30, "rope_theta": 10000.0, "rope_size": 128.0}
    return Published(name, "VQVAE-Switti", {"sides": sides, "autoregressive": autoregressive, **unstored})


def _infinity(name: str, tokenizer: str, pixels: str) -> Published:
    return Published(name, tokenizer, {"pixels": pixels, "rope_normalisation": 2, "level_embedding": "first"})


def _sides(schedule: Schedule) -> tuple[int, ...]:
    return tuple(side for side, _ in schedule.grids)


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "ImageNetVARPolicy": (
        *(_var(f"var_d{depth}", VAR_256) for depth in (16, 20, 24, 30)),
        _var("var_d36", VAR_512),
    ),
    "SwittiPolicy": (
        _switti("Switti", SIDES_512, autoregressive=False),
        _switti("Switti-AR", SIDES_512, autoregressive=True),
        _switti("Switti-1024", SIDES_1024, autoregressive=False),
        _switti("Switti-1024-AR", SIDES_1024, autoregressive=True),
    ),
    "InfinityPolicy": (
        _infinity("infinity_125M_256x256", "infinity_vae_d16", "0.06M"),
        _infinity("infinity_2b", "infinity_vae_d32", "1M"),  # published with `_reg` alone: the name says that it is another
        _infinity("infinity_2b_reg", "infinity_vae_d32reg", "1M"),
        _infinity("infinity_8b_weights", "infinity_vae_d56_f8_14_patchify", "1M"),
        _infinity("infinity_8b_512x512_weights", "infinity_vae_d56_f8_14_patchify", "0.25M"),
    ),
    "TokenFlowPolicy": (Published("TokenFlow-t2i", "tokenflow_clipb_32k_enhanced", {"schedule": _sides(TOKENFLOW_256)}),),
}
"""The facts, by the name of a family's class."""
TOKENIZERS = {published.tokenizer for family in PUBLISHED.values() for published in family} | {
    "infinity_vae_d24",
    "infinity_vae_d64",
    "tokenflow_siglip_32k",
}
"""The names of all published tokenizers; no published transformer was trained with the last three."""


def warn_of_contradictions(family: str, path: object, tokenizer: object, **settings: Any) -> None:
    """Warn when the name of a transformer's weights contradicts that of its tokenizer, or an argument; before anything is loaded.

    Such weights load without an error, since all shapes fit, and generate noise. Names are compared without regard to case and
    separators; a name that was never published says nothing, nor does an object.

    Args:
        family: the name of the family's class.
        path: a file, a folder or a hub id.
        tokenizer: likewise, or the tokenizer itself.
        settings: arguments of `from_pretrained`, by name; None where the weights decide.
    """
    published = recognised(family, path)
    if published is None:
        return
    wrong = [
        f"{name} is {_written(given)}, and they were trained with {_written(published.settings[name])}"
        for name, given in settings.items()
        if given is not None and name in published.settings and not _same(given, published.settings[name])
    ]
    other = _named(tokenizer, TOKENIZERS)
    if other not in (None, published.tokenizer):
        wrong.append(f"the tokenizer is {other}, and theirs is {published.tokenizer}")
    if wrong:
        warnings.warn(
            f"by their name, {path} are the weights {published.name} of {family}: {'; '.join(wrong)}. Nothing fails where all "
            "shapes fit, but the pictures are noise. Give what belongs together, or rename the file if the weights are your own",
            stacklevel=3,
        )


def recognised(family: str, path: object) -> Published | None:
    """The published checkpoint that a path names; None for any other name."""
    by_name = {published.name: published for published in PUBLISHED.get(family, ())}
    name = _named(path, by_name)
    return None if name is None else by_name[name]


def known_schedule(family: str, arguments: Mapping[str, Any]) -> Schedule | None:
    """The schedule that a policy will have, as far as the arguments of its `from_pretrained` show it; None where weights decide."""
    given: Any = arguments.get("schedule")
    if family == "LLMPrefixPolicy" and hasattr(given, "grids"):  # of any model, as no weights are published
        return Schedule(tuple((int(h), int(w)) for h, w in given.grids), (int(given.stride[0]), int(given.stride[1])))
    published = recognised(family, arguments.get("path"))
    if published is None:
        return None
    if "pixels" in published.settings:
        return published_schedule(None, arguments.get("pixels") or published.settings["pixels"], STRIDE)
    name = "sides" if "sides" in published.settings else "schedule"
    return square(_plain(arguments.get(name) or published.settings[name]), STRIDE)


def _named(source: object, names: Iterable[str]) -> str | None:
    """The published name that a path has, by its file or, where that says nothing, by the folder; None for an object."""
    if not isinstance(source, (str, Path)):
        return None
    known = {_key(name): name for name in names}
    for part in reversed(_whole(source).parts):
        key = _key(part.rpartition("--")[2])  # the hub's folders: models--owner--name
        if key and not _COMMIT.fullmatch(part):
            return known.get(key)
    return None


def _whole(source: str | Path) -> Path:
    """A path with the name of the file that will be read, where it is a folder on this machine."""
    path = Path(source).expanduser()
    if path.is_dir():
        with suppress(OSError, ValueError):  # the loader says in a moment what is wrong with the folder
            return path / find_weights(str(path))[1]
    return path


def _key(name: str) -> str:
    """A name in lower case without separators, and without words that say nothing."""
    return "".join(word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in SAYS_NOTHING)


def _same(given: Any, trained: Any) -> bool:
    return bool(_plain(given) == trained)


def _plain(value: Any) -> Any:
    """The sides of a schedule of square grids, or of a list of sides; any other value is returned unchanged."""
    grids = getattr(value, "grids", None)
    if grids is not None:
        return tuple(h if h == w else (h, w) for h, w in grids)
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _written(value: Any) -> str:
    value = _plain(value)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
