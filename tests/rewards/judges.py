"""A judge of brightness that is quick to give up, its pictures and its prompts."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from tests.rewards.chat_servers import ChatServer, brightness
from varrl_lightning.rewards.vlm_judge import VLMJudge
from varrl_lightning.types import Prompt, Scores

QUICK: dict[str, Any] = {"timeout": 0.5, "backoff": 0.01, "retries": 2, "patience": 0.3}
GREYS = torch.tensor([0.2, 0.6, 0.4, 1.0])
IMAGES = GREYS[:, None, None, None].expand(4, 3, 6, 8)
CUPS = [Prompt("a cup")] * 4


def spoken(request: dict[str, Any]) -> str:
    """Ten times the brightness."""
    return f"{10 * brightness(request):.1f}"


def judge(server: ChatServer, **arguments: Any) -> VLMJudge:
    """A judge that is quick to give up, with the question for a number."""
    settings = {"question": "How bright is {text}?"} if "preset" not in arguments else {}
    return VLMJudge(server.url, **{**QUICK, **settings, **arguments})


def scores(server: ChatServer, images: Tensor = IMAGES, prompts: list[Prompt] = CUPS, **arguments: Any) -> Scores:
    """A judge's scores, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return judge(server, **arguments)(images, prompts)
