"""The request to a reward service: JSON, PNG and base64, as examples/reward_service/PROTOCOL.md defines it."""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from varrl_lightning.types import Box, Prompt
from varrl_lightning.types.eight_bits import eight_bit_pixels, image_file

PROTOCOL = 1
KEY_HEADER = "X-API-Key"
PATH, HEALTH, INFO = "/predict", "/health", "/info"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">8s4x4sIIBB")
"""Signature, length, IHDR, width, height, bit depth, colour type: the first 26 bytes of every PNG."""
_EIGHT_BIT_RGB = (8, 2)
_LONGEST = 300
"""Characters of an error message, which may repeat what a client sent."""


class RequestError(Exception):
    """A request is rejected as a whole, with this HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ItemError(ValueError):
    """One image or its prompt is malformed; the others are scored."""


@dataclass(frozen=True)
class Limits:
    """The largest request that a service takes.

    Args:
        body: bytes of the body, as sent.
        images: number of images.
        pixels: pixels of all images together, so that a few kilobytes of PNG cannot become gigabytes.
    """

    body: int = 64 * 2**20
    images: int = 256
    pixels: int = 2**25

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"the limit of {name} must be at least 1, got {value}")


def encode_request(images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> bytes:
    """The body of a request; pixels are rounded to 8 bits.

    Args:
        images: RGB in [0, 1], all finite.
        prompts: one per image.
    """
    files = [base64.b64encode(image_file(picture, "png")).decode("ascii") for picture in eight_bit_pixels(images)]
    return json.dumps({"images": files, "prompts": [_as_object(prompt) for prompt in prompts]}).encode("ascii")


def _as_object(prompt: Prompt) -> dict[str, Any]:
    # An empty `extra` is left out: services of before it know no such key.
    line = {key: value for key, value in asdict(prompt).items() if value not in (None, (), {})}
    if prompt.regions:
        line["regions"] = [corners(box) for box in prompt.regions]
    return line


def knows_no_extra(errors: Iterable[str | None]) -> bool:
    """Whether these are the errors of a service of before `Prompt.extra`, which refuses every prompt that has one."""
    return all(error is not None and "unknown keys" in error and "'extra'" in error for error in errors)


def check_request(body: bytes, limits: Limits) -> dict[str, list[Any]]:
    """The lists of a request, of equal length; their entries are not checked yet.

    Raises:
        RequestError: 400 when it is not an object with `images` and `prompts` of one length, 413 beyond the limits.
    """
    request = read_json(body)
    if not isinstance(request, dict):
        raise RequestError(400, f"the body must be a JSON object with 'images' and 'prompts', got {kind_of(request)}")
    if set(request) != {"images", "prompts"}:
        raise RequestError(400, shortened(f"the body must have the keys 'images' and 'prompts', got {sorted(request)}"))
    for key, value in request.items():
        if not isinstance(value, list):
            raise RequestError(400, f"{key!r} must be a list, got {kind_of(value)}")
    images, prompts = len(request["images"]), len(request["prompts"])
    if images != prompts:
        raise RequestError(400, f"got {images} images and {prompts} prompts; expected one prompt per image")
    if not images:
        raise RequestError(400, "got no images; expected at least one")
    if images > limits.images:
        raise RequestError(413, f"got {images} images; at most {limits.images} fit in a request")
    return request


def read_json(body: bytes, constants: bool = False) -> Any:
    """Decode JSON.

    Args:
        constants: whether to read the NaN and Infinity that Python's encoder writes, though JSON has none.

    Raises:
        RequestError: 400 when it is not JSON.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=float if constants else _refuse)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, and integers of thousands of digits
        raise RequestError(400, shortened(f"the body is not JSON in UTF-8: {error}")) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def decode_image(image: Any, pixels_left: int) -> UInt8[Tensor, "3 H W"]:
    """One image from base64 and PNG.

    Args:
        image: the entry of the request.
        pixels_left: what the images before it left of the request's limit.

    Raises:
        ItemError: when it is no 8-bit RGB PNG within the limit; found before anything is decompressed, where possible.
    """
    if not isinstance(image, str):
        raise ItemError(f"an image must be a string, the base64 of a PNG file, got {kind_of(image)}")
    try:
        data = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ItemError(f"an image must be the base64 of a PNG file; paths and addresses are not read: {error}") from error
    if len(data) < _HEADER.size or not data.startswith(_SIGNATURE):
        raise ItemError("the base64 holds no PNG file; paths, addresses and other formats are not read")
    _, chunk, width, height, depth, colour = _HEADER.unpack_from(data)
    if chunk != b"IHDR" or (depth, colour) != _EIGHT_BIT_RGB:
        raise ItemError(f"the PNG must be 8-bit RGB (bit depth 8, colour type 2), got bit depth {depth}, colour type {colour}")
    if not 0 < width * height <= pixels_left:
        raise ItemError(f"a PNG of {width} x {height} pixels; {max(pixels_left, 0)} are left in this request")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            # A second header may follow the one that was read above; Pillow believes the last.
            if picture.size != (width, height) or picture.mode != "RGB":
                raise ItemError(f"the PNG says {width} x {height} pixels, and then {picture.size[0]} x {picture.size[1]}")
            pixels = np.array(picture)
    except ItemError:
        raise
    except Exception as error:  # Pillow raises many things for a damaged file
        raise ItemError(f"the PNG is damaged: {type(error).__name__}: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_prompt(prompt: Any) -> Prompt:
    """One prompt from its object.

    Raises:
        ItemError: names the key that is wrong.
    """
    if not isinstance(prompt, dict):
        raise ItemError(f"a prompt must be an object with 'text', got {kind_of(prompt)}")
    try:
        json.dumps(prompt, ensure_ascii=False, allow_nan=False).encode("utf-8")
        return Prompt.from_mapping(prompt)
    except (ValueError, TypeError, OverflowError) as error:  # half a surrogate pair, 1e999, a key that there is not
        raise ItemError(f"the prompt cannot be read: {error}") from error


def corners(box: Box) -> list[float]:
    """The corners of a box, as JSON holds them."""
    return [float(box.x0), float(box.y0), float(box.x1), float(box.y1)]


def shortened(message: str) -> str:
    """The beginning and the end of a message, since it may repeat what a client sent."""
    if len(message) <= _LONGEST:
        return message
    end = _LONGEST // 2
    return f"{message[: _LONGEST - end]} ... {message[-end:]}"


def kind_of(value: Any) -> str:
    """The name of a value's type in JSON."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
