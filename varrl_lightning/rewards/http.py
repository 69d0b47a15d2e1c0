"""The reward `http`: asks a reward service, waits for it when it is away, and never makes up a number."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.ocr_score import ocr_score
from varrl_lightning.rewards.base import BaseReward, Reading
from varrl_lightning.rewards.client_arguments import check_numbers, checked_address, checked_key
from varrl_lightning.rewards.exchange import (
    BUSY,
    LONGEST_PAUSE,
    PROBE,
    Attempts,
    AwayError,
    FailedError,
    RefusedError,
    ServiceGoneError,
    exchange,
)
from varrl_lightning.rewards.http_answer import Row, read_answer, read_rows, scores_of
from varrl_lightning.rewards.http_request import HEALTH, INFO, KEY_HEADER, PATH, encode_request, knows_no_extra, shortened
from varrl_lightning.types import Prompt, Scores

KEY = "VARRL_API_KEY"
ADDRESS = "http://host:port or https://host:port"


class _MalformedError(FailedError):
    """The service answered, but not as the protocol says."""

    def __init__(self, message: str, answer: bytes) -> None:
        super().__init__(message)
        self.answer = answer


class HttpReward(BaseReward):
    """Scores images by one or several reward services, in the range of the reward that they serve.

    It sends one request per group of equal prompts, several at a time. While no service can be reached it warns and waits; an
    answer that comes late is the same answer. An image that a service cannot score is NaN, and so is one about which the answer
    holds no finite number (a number in a string is one); the others of its request keep their scores. The client connects to the
    addresses directly, through no proxy.

    Args:
        url: address of a service, `http://host:port`, or several, which take turns and stand in for each other.
        api_key: sent as `X-API-Key`; by default the environment's VARRL_API_KEY, which stays out of the run's config.yaml.
        timeout: seconds for one answer, > 0.
        retries: how often a request that went wrong (not: a service that is away) is sent again before its images are NaN, >= 0;
            it is not sent again once two answers were the same.
        backoff: seconds before the first repetition, doubled for each further one up to 10, > 0.
        patience: seconds to wait for a service that is away before the run is stopped, its state saved, >= 0.
        parallel: requests at one time, >= 1.
        whole_groups: whether the reward that is served compares the images of a group; a request then holds a whole one.

    Raises:
        ValueError: on a value out of its range.
    """

    reads_words = True
    """The service may: it does not say."""

    def __init__(
        self,
        url: str | list[str],
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        patience: float = 600.0,
        parallel: int = 8,
        whole_groups: bool = False,
    ) -> None:
        self.urls = [checked_address(u, PATH, ADDRESS) for u in ([url] if isinstance(url, str) else url)]
        if not self.urls:
            raise ValueError("url must be an address or a list of addresses, got none")
        self.api_key = checked_key(api_key if api_key is not None else os.environ.get(KEY), KEY)
        check_numbers(retries=retries, parallel=parallel, patience=patience, timeout=timeout, backoff=backoff)
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.patience, self.parallel, self.whole_groups = patience, parallel, whole_groups
        self._sends_extra = True

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check before training that a service answers and takes the key.

        Raises:
            ValueError: when none answers, or one refuses.
        """
        reasons = []
        for url in self.urls:
            try:
                self._exchange(url, "GET", INFO, timeout=min(self.timeout, PROBE))
            except RefusedError as error:
                raise ValueError(str(error)) from error
            except (AwayError, FailedError, TimeoutError) as error:
                reasons.append(f"{url}: {error}")
        if len(reasons) == len(self.urls):
            raise ValueError(
                f"no reward service answers ({'; '.join(reasons)}). Start one with "
                f"`python -m varrl_lightning serve NAME --port PORT`, and wait until its page {HEALTH} says ok."
            )

    def read_back(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[Reading | None] | None:
        """What the service reads, compared as the OCR reward does by default; None where it does not say what it reads.

        The service is asked once, for at most `PROBE` seconds: one that is slow or away gives no answer here.
        """
        once = copy.copy(self)
        once.timeout, once.retries, once.patience = min(self.timeout, PROBE), 0, 0.0
        try:
            scores = once(images, prompts)
        except ServiceGoneError:
            return [None] * len(images)
        if scores.texts is None:
            return None if bool(scores.usable.any()) else [None] * len(images)
        return [
            Reading(" ".join(read), ocr_score(prompt.words, [(text, 1.0) for text in read]).completeness == 1) if usable else None
            for read, prompt, usable in zip(scores.texts, prompts, scores.usable.tolist(), strict=True)
        ]

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score images; NaN for those that are not finite and those that a service could not score.

        Raises:
            ServiceGoneError: when no service was back within `patience` seconds.
            RefusedError: when a service refuses what it is sent.
        """
        rows = [Row(error="the image is not finite")] * len(images)
        finite = images.isfinite().flatten(1).all(dim=1).tolist()
        groups = [list(group) for _, group in groupby((i for i in range(len(images)) if finite[i]), key=lambda i: prompts[i])]
        call = Attempts("reward service")
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                asked = [pool.submit(self._group, images[g], [prompts[i] for i in g], turn, call) for turn, g in enumerate(groups)]
                for group, answer in zip(groups, asked, strict=True):
                    for i, row in zip(group, answer.result(), strict=True):
                        rows[i] = row
            except BaseException:
                call.stop.set()  # Ctrl-C too: the threads must not wait on
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        _warn_about(rows)
        return scores_of(rows)

    def _group(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt], turn: int, call: Attempts) -> list[Row]:
        """The rows of one request; waits and tries again until there are some."""
        body = encode_request(images, prompts if self._sends_extra else [replace(prompt, extra={}) for prompt in prompts])
        malformed: bytes | None = None
        failures, pause, deadline = 0, self.backoff, time.monotonic() + self.patience
        while True:
            try:
                rows = self._ask_in_turn(body, len(images), turn)
                call.is_back()
                if not self._sends_extra or not knows_no_extra(row.error for row in rows):
                    return rows
                self._sends_extra = False
                warnings.warn(
                    "the reward service is older than Prompt.extra, and scores without it; update the service", stacklevel=2
                )
                return self._group(images, prompts, turn, call)
            except TooLargeError as error:
                if len(images) == 1:
                    raise
                if self.whole_groups:
                    raise TooLargeError(f"{error} A group of {len(images)} is not divided: raise its limits.") from error
                halves = (slice(0, len(images) // 2), slice(len(images) // 2, None))
                return [row for half in halves for row in self._group(images[half], prompts[half], turn, call)]
            except FailedError as error:
                failures += 1
                same = isinstance(error, _MalformedError) and error.answer == malformed
                malformed = error.answer if isinstance(error, _MalformedError) else None
                if same or failures > self.retries:
                    return [Row(error=str(error))] * len(images)
                deadline = time.monotonic() + self.patience
            except AwayError as error:
                call.is_away(str(error), self.patience)
                if time.monotonic() + pause > deadline:
                    raise ServiceGoneError(
                        f"no reward service has answered for {self.patience:g} seconds ({error}). "
                        "Start it again, then resume; patience sets how long the client waits."
                    ) from error
            call.wait(pause)
            pause, turn = min(2 * pause, LONGEST_PAUSE), turn + 1

    def _ask_in_turn(self, body: bytes, n: int, turn: int) -> list[Row]:
        """The rows of the first service that can be reached, beginning at number `turn`.

        Raises:
            AwayError: when none can be reached.
            FailedError, RefusedError: when the first that can be reached gives no rows.
        """
        away = []
        for step in range(len(self.urls)):
            url = self.urls[(turn + step) % len(self.urls)]
            try:
                return self._ask(url, body, n)
            except AwayError as error:
                away.append(f"{url}: {error}")
            except _MalformedError as error:
                raise _MalformedError(f"{url}: {error}", error.answer) from error
            except FailedError as error:
                raise FailedError(f"{url}: {error}") from error
        raise AwayError("; ".join(away))

    def _ask(self, url: str, body: bytes, n: int) -> list[Row]:
        try:
            answer = self._exchange(url, "POST", PATH, body, timeout=self.timeout)
        except TimeoutError as error:
            # Slow, or stopped? In the first case the request is at fault, in the second nothing is.
            try:
                self._exchange(url, "GET", HEALTH, timeout=min(self.timeout, PROBE))
            except (TimeoutError, FailedError) as probe:
                raise AwayError(f"{error}, nor on its health page") from probe
            raise FailedError(str(error)) from error
        try:
            read = read_answer(answer)
            rows = read_rows(read, n)
        except ValueError as error:
            raise _MalformedError(f"it answered in another form: {error}", answer) from error
        if read.get("whole_groups") is True and not self.whole_groups:
            raise RefusedError(
                f"the reward that {url} serves compares the images of a group; give the reward http whole_groups: true, or it "
                "would compare those of any part of a group"
            )
        return rows

    def _exchange(self, url: str, method: str, path: str, body: bytes | None = None, *, timeout: float) -> bytes:
        """One request and its answer's body.

        Raises:
            TimeoutError, AwayError, FailedError, RefusedError: by what came back, if anything did.
        """
        headers = {"Content-Type": "application/json"} | ({KEY_HEADER: self.api_key} if self.api_key else {})
        response = exchange(url.rstrip("/") + path, method, body, headers, timeout)
        if response.status == 200:
            return response.body
        reply = f"it answered {response.status} {response.reason}: {shortened(response.body.decode('utf-8', 'replace'))}"
        if response.status in BUSY:
            raise AwayError(reply)
        if response.status >= 500:
            raise FailedError(reply)
        hint = f" Set {KEY} to its key." if response.status in (401, 403) else ""
        refusal = TooLargeError if response.status == 413 else RefusedError
        raise refusal(f"the reward service {url} does not take the request: {reply}.{hint}")


class TooLargeError(RefusedError):
    """A request is larger than the service takes: it is sent again in halves; of one image, it fails."""


def _warn_about(rows: Sequence[Row]) -> None:
    """Warn about images without a score, and about those of whose answer a part could not be read."""
    for scored, what in ((False, "no score for"), (True, "no complete answer about")):
        told = [row.error for row in rows if row.error is not None and (row.value is not None) == scored]
        errors = list(dict.fromkeys(told))
        if errors:
            more = f"; and {len(errors) - 3} other reasons" if len(errors) > 3 else ""
            warnings.warn(f"{what} {len(told)} of {len(rows)} images: {'; '.join(errors[:3])}{more}", stacklevel=3)
