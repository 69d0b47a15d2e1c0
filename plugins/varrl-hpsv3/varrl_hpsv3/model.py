"""The hpsv3 package's model: found, loaded and asked, with errors that say what to do."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


class HPSv3Error(Exception):
    """HPSv3 is not installed, cannot be loaded, or answered in a form that is not its own."""


def check_installed() -> None:
    """Raise an HPSv3Error that says how to install it, without importing anything."""
    if importlib.util.find_spec("hpsv3") is None:
        raise HPSv3Error(
            "the package hpsv3 is not installed here. It pins transformers 4.45.2, with which varrl-lightning cannot train: "
            "give it an environment of its own, run `python -m varrl_lightning serve hpsv3 --port PORT` there, and take that "
            "service as the reward (README of varrl-hpsv3)."
        )


def existing_file(name: str, path: str | Path | None) -> Path | None:
    """The path of a file that is there, None for the published one.

    Raises:
        FileNotFoundError: names the argument and the path.
    """
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{name} must be a file, got {str(path)!r}; leave it out for the published one")
    return file


def load(config: Path | None, checkpoint: Path | None, device: str) -> Any:
    """hpsv3's own inferencer, in evaluation mode.

    In float32 on a CPU: in the published bfloat16 its head, which is float32, cannot follow its body there.

    Raises:
        HPSv3Error: when it cannot be imported, when files are missing and cannot be downloaded, or weights do not fit the config.
    """
    check_installed()
    where = f"config {config or 'as published'}, checkpoint {checkpoint or 'as published (MizzenAI/HPSv3)'}"
    try:
        inferencer = importlib.import_module("hpsv3").HPSv3RewardInferencer(
            config_path=None if config is None else str(config),
            checkpoint_path=None if checkpoint is None else str(checkpoint),
            device="cpu",
        )
    except (ImportError, AttributeError) as error:
        raise HPSv3Error(
            f"hpsv3 is installed but cannot be used: {type(error).__name__}: {error}. It needs transformers 4.45.2, trl 0.12.2, "
            "matplotlib and tensorboard, which installing varrl-hpsv3 in an environment of its own brings along."
        ) from error
    except OSError as error:  # the hub's own errors are OSErrors too
        raise HPSv3Error(
            f"HPSv3 cannot be read ({where}): {type(error).__name__}: {error}. It needs HPSv3.safetensors of MizzenAI/HPSv3 and "
            "all of Qwen/Qwen2-VL-7B-Instruct, about 16 GB each. Where there is no network, copy both there, give checkpoint_path, "
            "and a config_path whose model_name_or_path is the folder of the latter (README of varrl-hpsv3)."
        ) from error
    except RuntimeError as error:
        raise HPSv3Error(f"the checkpoint does not fit the config ({where}): {error}") from error
    if torch.device(device).type == "cpu":
        inferencer.model.float()
    inferencer.model.requires_grad_(False).eval().to(device)
    inferencer.device = device
    return inferencer


@torch.no_grad()
def ask(inferencer: Any, pictures: Sequence[Any], prompts: Sequence[str]) -> Float[Tensor, "B 2"]:
    """Mean and logarithm of the standard deviation of each picture's score, in float32 on the CPU.

    Raises:
        TypeError: on anything but PIL images: hpsv3 would open a string as a path or an address.
        HPSv3Error: on an answer of another shape.
    """
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            raise TypeError(f"HPSv3 is given PIL images only, got a {type(picture).__name__}")
    with warnings.catch_warnings():
        # hpsv3 asks for CUDA's autocast, also where there is no CUDA; how torch says so depends on its version.
        warnings.filterwarnings("ignore", ".*CUDA is not available", UserWarning)
        # By keyword: their order differs between hpsv3's releases.
        answer = inferencer.reward(image_paths=list(pictures), prompts=list(prompts))
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(pictures), 2):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise HPSv3Error(
            f"hpsv3 answered {got} for {len(pictures)} images; expected ({len(pictures)}, 2), mean and log deviation each"
        )
    return answer.float().cpu()
