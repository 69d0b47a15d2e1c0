"""A client of OpenAI-compatible chat endpoints (vLLM, SGLang, a hosted one): a request in, an answer out, none made up."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from varrl_lightning.rewards.exchange import (
    BUSY,
    LONGEST_PAUSE,
    PROBE,
    Attempts,
    AwayError,
    FailedError,
    RefusedError,
    Reply,
    ServiceGoneError,
    exchange,
)
from varrl_lightning.rewards.http_request import shortened

LONGEST_RETRY_AFTER = 60.0
"""Seconds that a server may ask for before the next attempt."""
LATE = (408, 502, 504)
"""Status codes by which a gateway gives up a request: it may be the one that is too slow."""
REFUSALS = ("content_filter", "content_policy_violation")
"""What endpoints call an answer that they withhold."""


@dataclass(frozen=True)
class AnswerToken:
    """One token of an answer.

    Args:
        text: as it stands in the answer.
        likeliest: log-probabilities of the likeliest tokens in its place, by their texts.
    """

    text: str
    likeliest: Mapping[str, float]


@dataclass(frozen=True)
class ChatAnswer:
    """What a model answered.

    Args:
        text: the answer, empty where there is none.
        tokens: its tokens, where the server gives log-probabilities; else None.
        refused: whether the model, or a filter before it, withheld the answer.
        truncated: whether it was cut at its longest.
        prompt_tokens, completion_tokens: what it cost; 0 where the server does not say.
    """

    text: str
    tokens: tuple[AnswerToken, ...] | None = None
    refused: bool = False
    truncated: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def to_json(self) -> str:
        """The answer as text, for a cache."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(written: str) -> ChatAnswer:
        """What `to_json` wrote."""
        read = json.loads(written)
        tokens = read.pop("tokens")
        return ChatAnswer(**read, tokens=None if tokens is None else tuple(AnswerToken(**token) for token in tokens))


class RejectedError(FailedError):
    """The endpoint rejects this request, and would reject it again; others may pass."""


class Chat:
    """Asks one endpoint.

    While it cannot be reached, or says that it is busy, it waits: an answer that comes late is the same answer. A request that goes
    wrong otherwise is sent again a few times.

    Args:
        url: the address up to its version, such as `http://127.0.0.1:8000/v1`.
        api_key: sent as a bearer token; None sends none.
        timeout: seconds for one answer, > 0.
        retries: how often a request that went wrong is sent again, >= 0.
        backoff: seconds before the first repetition, doubled for each further one up to 10, > 0.
        patience: seconds to wait for an endpoint that is away, >= 0.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float, retries: int, backoff: float, patience: float) -> None:
        self.url, self.api_key = url, api_key
        self.timeout, self.retries, self.backoff, self.patience = timeout, retries, backoff, patience
        self._has_answered = False

    def models(self) -> list[str]:
        """Names of the models that the endpoint has.

        Raises:
            TimeoutError, AwayError, FailedError, RefusedError: when it does not say.
        """
        answer = self._content(self._send("GET", "/models", None, self.timeout))
        try:
            return [str(model["id"]) for model in json.loads(answer)["data"]]
        except (ValueError, TypeError, KeyError) as error:
            raise FailedError(f"{self.url}/models answered in another form: {type(error).__name__}: {error}") from error

    def ask(self, request: Mapping[str, Any], attempts: Attempts) -> ChatAnswer:
        """The answer to a request; waits and tries again until there is one.

        Args:
            request: the body, as the endpoint `/chat/completions` takes it.

        Raises:
            FailedError: when this request fails again and again, or is rejected.
            ServiceGoneError: when the endpoint was away for `patience` seconds.
            RefusedError: when it refuses every request, as with a wrong key.
        """
        body = json.dumps(request).encode()
        failures, pause, deadline = 0, self.backoff, time.monotonic() + self.patience
        while True:
            asked_for = 0.0
            try:
                answer = self._ask_once(body)
                attempts.is_back()
                return answer
            except RejectedError:
                raise
            except FailedError:
                failures += 1
                if failures > self.retries:
                    raise
                deadline = time.monotonic() + self.patience
            except AwayError as error:
                attempts.is_away(str(error), self.patience)
                asked_for = min(error.retry_after, LONGEST_RETRY_AFTER)
                if time.monotonic() + max(pause, asked_for) > deadline:
                    raise ServiceGoneError(
                        f"{self.url} has not answered for {self.patience:g} seconds ({error}). Start it again, then resume; "
                        "patience sets how long the client waits."
                    ) from error
            attempts.wait(max(pause, asked_for))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _ask_once(self, body: bytes) -> ChatAnswer:
        try:
            reply = self._send("POST", "/chat/completions", body, self.timeout)
        except (TimeoutError, AwayError) as error:
            if self._is_there():  # then the request is at fault: it is too slow, or breaks the connection
                raise FailedError(str(error)) from error
            raise AwayError(str(error)) from error
        if reply.status in LATE and self._is_there():
            raise FailedError(self._said(reply))
        if reply.status in (400, 422) and any(name in reply.body.decode("utf-8", "replace") for name in REFUSALS):
            return ChatAnswer("", refused=True)
        answer = read_answer(self._content(reply))
        self._has_answered = True
        return answer

    def _is_there(self) -> bool:
        """Whether the endpoint answers another request, if only that it does not know it."""
        try:
            reply = self._send("GET", "/models", None, min(self.timeout, PROBE))
        except (TimeoutError, AwayError):
            return False
        return reply.status not in BUSY

    def _send(self, method: str, path: str, body: bytes | None, timeout: float) -> Reply:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})
        return exchange(self.url + path, method, body, headers, timeout)

    def _content(self, reply: Reply) -> bytes:
        """The body of a reply that is an answer.

        Raises:
            AwayError, FailedError, RefusedError: by its status.
        """
        if reply.status == 200:
            return reply.body
        said = self._said(reply)
        if reply.status in BUSY:
            raise AwayError(said, _seconds(reply.headers.get("retry-after", "")))
        if reply.status >= 500:
            raise FailedError(said)
        # An endpoint that has answered this key before may forbid a single picture.
        if reply.status in (401, 404, 405) or (reply.status == 403 and not self._has_answered):
            raise RefusedError(said)
        raise RejectedError(said)

    def _said(self, reply: Reply) -> str:
        return f"{self.url} answered {reply.status} {reply.reason}: {shortened(reply.body.decode('utf-8', 'replace'))}"


def read_answer(body: bytes) -> ChatAnswer:
    """The answer in a body, as `/chat/completions` writes it.

    Raises:
        FailedError: when it has another form.
    """
    try:
        read = json.loads(body)
        choice = read["choices"][0]
        message = choice["message"]
        text = _text(message.get("content"))
        usage = read.get("usage") or {}
        return ChatAnswer(
            text,
            _tokens((choice.get("logprobs") or {}).get("content")),
            refused=bool(message.get("refusal")) or choice.get("finish_reason") in REFUSALS,
            truncated=choice.get("finish_reason") == "length",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        told = shortened(body.decode("utf-8", "replace"))
        raise FailedError(f"it answered in another form ({type(error).__name__}: {error}): {told}") from error


def _text(content: Any) -> str:
    """A message's text: a string, or the texts of its parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _tokens(content: Any) -> tuple[AnswerToken, ...] | None:
    if not content:
        return None
    return tuple(
        AnswerToken(str(token["token"]), {str(top["token"]): float(top["logprob"]) for top in token["top_logprobs"]})
        for token in content
    )


def _seconds(retry_after: str) -> float:
    """The seconds that a server asks for, where it names them as a number."""
    try:
        seconds = float(retry_after)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
