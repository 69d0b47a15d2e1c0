"""The worker of the reward service: decodes, batches and scores, and lets nothing of one item reach another."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from queue import Empty
from typing import Any, TypeAlias

import torch
from jaxtyping import UInt8
from litserve import LitAPI
from litserve.loops.simple_loops import BatchedLoop
from torch import Tensor

from varrl_lightning.errors import RewardError
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.base import Reward, score_images
from varrl_lightning.rewards.http_answer import Row, encode_answer, rows_of
from varrl_lightning.rewards.http_request import PATH, ItemError, Limits, decode_image, decode_prompt
from varrl_lightning.serving.gate import end_with_the_parent
from varrl_lightning.types import Prompt

_log = logging.getLogger(__name__)
Item: TypeAlias = "tuple[UInt8[Tensor, '3 H W'], Prompt]"
Decoded: TypeAlias = "list[Item | ItemError]"


class RewardAPI(LitAPI):  # type: ignore[misc]
    """The reward as LitServe's workers call it.

    Args:
        name: a reward's plugin name or class path.
        init_args: arguments of its constructor.
        limits: the largest request.
        max_batch_size: requests (groups) that are scored together.
        batch_timeout: seconds to wait for further requests, counted from the first.
    """

    def __init__(
        self, name: str, init_args: Mapping[str, Any], limits: Limits, max_batch_size: int = 8, batch_timeout: float = 0.01
    ) -> None:
        loop = PatientLoop() if max_batch_size > 1 else "auto"
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout, api_path=PATH, loop=loop)
        self.name, self.init_args, self.limits = name, dict(init_args), limits
        self.reward: Reward | None = None
        self.ending = False
        """Set when the service is told to end: a worker that LitServe starts after that has nothing to do."""

    def setup(self, device: str) -> None:
        """Build the reward in the worker process and have it load what is large, before the first request."""
        if self.ending:  # LitServe's monitor takes a worker that ended with the service for a broken one, and starts another
            os._exit(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first of them ends the others
        end_with_the_parent()
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        self.place = torch.device(device)
        self.reward = build(REWARDS, {"class_path": self.name, "init_args": self.init_args})
        self.reward.prepare()

    # LitServe makes an HTTP parameter of an annotation of `request`, and a schema of one of the answer: there must be none.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """The images and prompts of a request; in place of a malformed one, its error."""
        left = self.limits.pixels
        decoded: Decoded = []
        for image, prompt in zip(request["images"], request["prompts"], strict=True):
            try:
                item = (decode_image(image, left), self._checked(decode_prompt(prompt)))
            except ItemError as error:
                decoded.append(error)
            else:
                left -= item[0][0].numel()
                decoded.append(item)
        return decoded

    def _checked(self, prompt: Prompt) -> Prompt:
        assert self.reward is not None
        try:
            self.reward.check_prompts([prompt])
        except ValueError as error:
            raise ItemError(f"the reward cannot score this prompt: {error}") from error
        return prompt

    def predict(self, x: Any) -> Any:
        """The rows of each request; of the only one, when requests are not batched."""
        assert self.reward is not None
        requests: list[Decoded] = x if self.max_batch_size > 1 else [x]
        if self.reward.whole_groups:  # a request is a group, which is compared with no other
            answers = [self._rows(request) for request in requests]
        else:
            rows = iter(self._rows([item for request in requests for item in request]))
            answers = [[next(rows) for _ in request] for request in requests]
        return answers if self.max_batch_size > 1 else answers[0]

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        """The answer to one request."""
        assert self.reward is not None
        return encode_answer(output, self.reward.whole_groups)

    def _rows(self, items: Sequence[Item | ItemError]) -> list[Row]:
        """One row per item; images of one size are scored together."""
        rows = [Row(error=str(item)) if isinstance(item, ItemError) else Row() for item in items]
        sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            if not isinstance(item, ItemError):
                sizes[tuple(item[0].shape)].append(i)
        assert self.reward is not None
        if self.reward.whole_groups and len(sizes) > 1:
            found = ", ".join(f"{width} x {height}" for _, height, width in sizes)
            error = f"the reward compares the images of a request, which must be of one size, got {found}"
            return [replace(row, error=row.error or error) for row in rows]
        for places in sizes.values():
            scored = self._score([item for i in places if not isinstance(item := items[i], ItemError)])
            for place, row in zip(places, scored, strict=True):
                rows[place] = row
        return rows

    def _score(self, items: Sequence[Item]) -> list[Row]:
        """The rows of images of one size; when the reward raises, it is called for each half: only the culprits are lost.

        Of a reward that compares the images of a group, the whole group is lost.
        """
        assert self.reward is not None
        images = torch.stack([image for image, _ in items]).to(self.place).float() / 255
        try:
            return rows_of(score_images(self.reward, images, [prompt for _, prompt in items], self.name))
        except RewardError as error:
            if len(items) == 1 or self.reward.whole_groups:
                _log.warning("%s", error, exc_info=error.__cause__)
                return [Row(error=str(error))] * len(items)
        del images  # the reward may have run out of memory
        half = len(items) // 2
        return self._score(items[:half]) + self._score(items[half:])


class PatientLoop(BatchedLoop):  # type: ignore[misc]
    """Waits for the first request, then for further ones; LitServe's loop would poll a thousand times a second."""

    def get_batch_requests(self, lit_api: RewardAPI, request_queue: Any, transport: Any) -> tuple[list[Any], list[Any]]:
        """Up to `max_batch_size` requests that came within `batch_timeout` of the first, and those that waited too long."""
        batch: list[Any] = []
        late: list[Any] = []
        end = time.monotonic() + 1
        while len(batch) < lit_api.max_batch_size:
            try:
                response_queue, uid, came, payload = request_queue.get(timeout=max(end - time.monotonic(), 0))
            except Empty:
                break
            if not batch:
                end = time.monotonic() + lit_api.batch_timeout
            if time.monotonic() - came > lit_api.request_timeout:
                late.append((response_queue, uid))
            else:
                batch.append((response_queue, uid, payload))
        return batch, late
