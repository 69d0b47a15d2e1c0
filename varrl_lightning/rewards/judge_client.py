"""Asks a judge many questions at once, reads their answers, and counts what was asked, what failed and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from varrl_lightning.errors import RewardError
from varrl_lightning.rewards.answer_cache import AnswerCache
from varrl_lightning.rewards.chat import Chat, ChatAnswer
from varrl_lightning.rewards.exchange import Attempts, FailedError
from varrl_lightning.rewards.judge_answers import AnswerReader, UnreadableError

Numbers: TypeAlias = Mapping[str, float]
"""What was read of one answer, by names."""
Request: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, in any unit of money.

    Args:
        prompt, completion: of the question with its images, and of the answer; >= 0.

    Raises:
        ValueError: on a price below 0.
    """

    prompt: float = 0.0
    completion: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise ValueError(f"the price of {name} tokens must be at least 0, got {value}")

    def of(self, answer: ChatAnswer) -> float:
        """What an answer costs."""
        return (answer.prompt_tokens * self.prompt + answer.completion_tokens * self.completion) / 1e6


@dataclass
class Usage:
    """What one process has asked a judge since its start.

    Args:
        asked: requests that the judge has answered.
        cached: requests that an earlier answer made needless.
        refused, unreadable, failed: answers that were withheld, that held no number, and that never came.
        prompt_tokens, completion_tokens: as the server counts them.
        cost: of these tokens, in the unit of the prices.
    """

    asked: int = 0
    cached: int = 0
    refused: int = 0
    unreadable: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What came of one request: numbers, or the reason why there are none."""

    numbers: Numbers | None
    reason: str = ""


class JudgeClient:
    """Asks several requests at one time, equal ones once.

    Args:
        chat: the endpoint.
        read: how numbers are read from an answer.
        cache: earlier answers.
        parallel: requests at one time.
        price: of the tokens.
        max_cost: the cost beyond which nothing more is asked, > 0; None for no limit.

    Raises:
        ValueError: for a limit without a price, which could never be reached, or one that is not above 0.
    """

    def __init__(
        self, chat: Chat, read: AnswerReader, cache: AnswerCache, parallel: int, price: Price, max_cost: float | None
    ) -> None:
        if max_cost is not None and not max_cost > 0:
            raise ValueError(f"max_cost must be > 0, got {max_cost}")
        if max_cost is not None and price == Price():
            raise ValueError("max_cost needs a price: {prompt: ..., completion: ...}, of a million tokens")
        self.chat, self.read, self.cache, self.parallel = chat, read, cache, parallel
        self.price, self.max_cost, self.usage = price, max_cost, Usage()

    def outcomes(self, requests: Sequence[Request]) -> list[Outcome]:
        """What came of each request, in their order.

        Raises:
            ServiceGoneError, RefusedError: see `Chat.ask`; no request is lost that was answered before.
            RewardError: when `max_cost` is reached.
        """
        keys = [self.cache.key(self.chat.url, request) for request in requests]
        different = dict(zip(keys, requests, strict=True))
        known = self.cache.known(different)
        self.usage.cached += len(keys) - len(different) + len(known)
        outcomes = {key: self._read(answer) for key, answer in known.items()}
        outcomes |= self._ask_all({key: request for key, request in different.items() if key not in known})
        return [outcomes[key] for key in keys]

    def _ask_all(self, requests: Mapping[str, Request]) -> dict[str, Outcome]:
        """Ask what no earlier answer answers; keep those answers that can be read."""
        if not requests:
            return {}
        self._check_cost()
        attempts = Attempts("judge")
        outcomes: dict[str, Outcome] = {}
        readable: dict[str, ChatAnswer] = {}
        asked: dict[str, Future[ChatAnswer]] = {}
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                asked |= {key: pool.submit(self.chat.ask, request, attempts) for key, request in requests.items()}
                for key, answer in asked.items():
                    outcomes[key] = self._outcome(answer)
                    if outcomes[key].numbers is not None:
                        readable[key] = answer.result()
            except BaseException:
                attempts.stop.set()  # Ctrl-C too: the threads must not wait on
                pool.shutdown(wait=False, cancel_futures=True)
                left = {key: answer for key, answer in asked.items() if key not in outcomes and _is_answered(answer)}
                # What has been paid for is kept.
                readable |= {key: answer.result() for key, answer in left.items() if self._outcome(answer).numbers is not None}
                raise
            finally:
                self.cache.add(readable)
        return outcomes

    def _outcome(self, answer: Future[ChatAnswer]) -> Outcome:
        """What came of one request, counted."""
        try:
            given = answer.result()
        except FailedError as error:
            self.usage.failed += 1
            return Outcome(None, f"failed: {error}")
        self.usage.asked += 1
        self.usage.prompt_tokens += given.prompt_tokens
        self.usage.completion_tokens += given.completion_tokens
        self.usage.cost += self.price.of(given)
        return self._read(given)

    def _read(self, answer: ChatAnswer) -> Outcome:
        if answer.refused or not answer.text.strip():
            self.usage.refused += 1
            return Outcome(None, f"refused: {answer.text.strip() or 'an empty answer'}")
        try:
            return Outcome(self.read.read(answer))
        except UnreadableError as error:
            self.usage.unreadable += 1
            return Outcome(None, f"unreadable: {error}")

    def _check_cost(self) -> None:
        if self.max_cost is not None and self.usage.cost >= self.max_cost:
            raise RewardError(
                f"the judge has cost {self.usage.cost:.4g} in this process, and max_cost is {self.max_cost:g}: nothing more is "
                "asked. The run can be resumed; the cost is counted from its start"
            )


def _is_answered(answer: Future[ChatAnswer]) -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None
