"""The requests to a judge: images as data URLs beside a question, in the form of OpenAI's chat endpoint."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.types.eight_bits import ImageFormat, eight_bit_pixels, image_file

TOP_LOG_PROBS = 20
"""Likeliest tokens for which log-probabilities are asked: the most that the protocol allows."""


def data_urls(images: Float[Tensor, "N 3 H W"], image_format: ImageFormat) -> list[str]:
    """Each image as a file in a URL; pixels are rounded to 8 bits."""
    files = (base64.b64encode(image_file(picture, image_format)).decode("ascii") for picture in eight_bit_pixels(images))
    return [f"data:image/{image_format};base64,{file}" for file in files]


def messages(question: str, urls: Sequence[str], system: str | None) -> list[dict[str, Any]]:
    """A conversation of one question about one image, or about several, which are called Image 1, Image 2."""
    content: list[dict[str, Any]] = []
    for number, url in enumerate(urls, start=1):
        if len(urls) > 1:
            content.append({"type": "text", "text": f"Image {number}:"})
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": question})
    asked = [{"role": "user", "content": content}]
    return asked if system is None else [{"role": "system", "content": system}, *asked]


def settings(max_tokens: int | None, temperature: float | None, log_probs: bool, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request beside the model and the conversation; what is None is left to the server."""
    chosen: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    if log_probs:
        chosen |= {"logprobs": True, "top_logprobs": TOP_LOG_PROBS}
    return {name: value for name, value in {**chosen, **extra}.items() if value is not None}
