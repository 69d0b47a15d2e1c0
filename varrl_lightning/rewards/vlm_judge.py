"""The reward `vlm_judge`: a vision-language model behind a chat endpoint says how good an image is."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.errors import RewardError
from varrl_lightning.rewards.answer_cache import AnswerCache
from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.rewards.chat import Chat
from varrl_lightning.rewards.client_arguments import check_numbers, checked_address, checked_key
from varrl_lightning.rewards.exchange import AwayError, FailedError
from varrl_lightning.rewards.judge_answers import AnswerReader
from varrl_lightning.rewards.judge_arguments import check_modes, named_questions
from varrl_lightning.rewards.judge_client import JudgeClient, Numbers, Outcome, Price, Request
from varrl_lightning.rewards.judge_presets import preset_named
from varrl_lightning.rewards.judge_questions import (
    ListedQuestion,
    check_fields,
    filled,
    listed_questions,
    share_of_yes,
)
from varrl_lightning.rewards.judge_requests import data_urls, messages, settings
from varrl_lightning.types import Prompt, Scores
from varrl_lightning.types.eight_bits import ImageFormat

KEY = "VARRL_JUDGE_API_KEY"
ADDRESS = "the address of a chat endpoint up to its version, such as http://127.0.0.1:8000/v1"
MAX_TOKENS = 64
"""Length of an answer where no preset says another."""
TRIALS = 3
"""Prompts about which a judge is asked before training, until one of its answers can be read."""
TRIAL_RETRIES, TRIAL_PATIENCE = 2, 30.0
"""Repetitions and seconds for which such a trial waits at most."""
TRIAL_SIDE = 224
"""Pixels of the picture of those trials."""


@dataclass(frozen=True)
class _Question:
    """One question about one image or one pair: its name in the log, its text, and the question of a list that it is."""

    name: str
    text: str
    listed: ListedQuestion | None = None


class VLMJudge(BaseReward):
    """Asks a vision-language model about each image, and reads a number from its answer.

        R = mean over the questions of ( mean over the numbers of the answer ),  in the range of those numbers

    The endpoint is OpenAI's `/chat/completions`: vLLM, SGLang, `transformers serve`, or a hosted one. The request holds the image.
    An image has no score where an answer to one of its questions is withheld, holds no number in the range, or never comes; other
    images keep theirs. The log counts how often that happened so far, the tokens and the costs (`Usage`). While the endpoint is
    away, training waits.

    `pairwise: true` compares the images of a group, two in one request and in both orders, since judges favour a place:

        R_i = mean over opponents j of ( p(i, j) + 1 - p(j, i) ) / 2,  p(i, j) in [0, 1]: 1 if the first of the two is better

    It is the win rate within the group, in [0, 1]. An image alone, as in validation and test, has no value. A pair without two
    readable answers does not count.

    Args:
        url: address of the endpoint up to its version, such as `http://127.0.0.1:8000/v1`.
        model: its name there; by default the only one that the endpoint has.
        preset: `unified_reward` or `yes_no`, for what is not given of question, read, max_tokens and question_column. The first
            asks for the scores that UnifiedReward (arXiv 2503.05236) writes, in words of ours; the second asks the questions in
            each prompt's column `questions`, as DPG-Bench and TIFA do.
        question: a template, a list of them, or a mapping of names to them. `{text}`, `{words}`, `{id}`, `{category}`,
            `{negative}` and columns of the prompt file are put in.
        question_column: column of the prompt file with a list of yes/no questions, each of which takes the place of `{question}`
            (`listed_questions`). The score is the share of yes.
        read: how a number is read: fields of `AnswerReader`.
        system: a system message.
        pairwise: whether images are compared in pairs.
        opponents: of `pairwise`, against how many others each image is set at least; by default against all.
        image_format: `png`, or `jpeg` of quality 95.
        max_tokens: length of an answer; by default the preset's, or 64.
        temperature: 0 for the likeliest answer.
        request: further fields of the request; null takes one out. Endpoints that refuse max_tokens want
            `{max_tokens: null, max_completion_tokens: 64}`.
        api_key: sent as a bearer token; by default the environment's VARRL_JUDGE_API_KEY, which stays out of config.yaml.
        timeout: seconds for one answer, > 0.
        retries: how often a request that failed is sent again before its image has no score, >= 0.
        backoff: seconds before the first repetition, doubled for each further one up to 10, > 0.
        patience: seconds to wait for an endpoint that is away before the run is stopped, its state saved, >= 0.
        parallel: requests at one time, >= 1.
        cache: an SQLite file with answers, which several runs may share; by default they are kept in memory.
        price: `{prompt: ..., completion: ...}` of a million tokens, for the log.
        max_cost: the cost at which the run is stopped, its state saved; each process counts its own from its start.

    Raises:
        ValueError: on a value out of its range, or questions and readings that do not fit together.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        preset: str | None = None,
        question: str | list[str] | dict[str, str] | None = None,
        question_column: str | None = None,
        read: AnswerReader | None = None,
        system: str | None = None,
        pairwise: bool = False,
        opponents: int | None = None,
        image_format: ImageFormat = "png",
        max_tokens: int | None = None,
        temperature: float = 0.0,
        request: dict[str, Any] | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        patience: float = 600.0,
        parallel: int = 8,
        cache: str | None = None,
        price: Price | None = None,
        max_cost: float | None = None,
    ) -> None:
        named = None if preset is None else preset_named(preset, pairwise)
        if named is not None:
            question, read = question or named.question, read or named.read
            question_column, max_tokens = question_column or named.question_column, max_tokens or named.max_tokens
        self.questions, self.column, self.system = named_questions(question), question_column, system
        self.whole_groups, self.opponents, self.image_format = pairwise, opponents, image_format
        self.scores_alone = not pairwise
        read = read or AnswerReader()
        check_modes(self.questions, read, question_column, pairwise, opponents)
        check_numbers(retries=retries, parallel=parallel, patience=patience, timeout=timeout, backoff=backoff)
        address = checked_address(url, "/chat/completions", ADDRESS)
        self.chat = Chat(address, checked_key(api_key or os.environ.get(KEY), KEY), timeout, retries, backoff, patience)
        self.client = JudgeClient(self.chat, read, AnswerCache(cache), parallel, price or Price(), max_cost)
        self.settings = settings(max_tokens or MAX_TOKENS, temperature, read.wants_log_probs, request or {})
        self._model, self._was_tried = model, False

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check before training that each prompt has what is asked about, and that the judge answers in a form that can be read.

        Each question is asked about a plain picture, for at most three prompts, until one answer can be read.

        Raises:
            ValueError: when a prompt lacks a field or a question, when the judge does not answer, or when no answer can be read.
        """
        check_fields(self.questions.values(), prompts)
        if self.column is not None:
            for prompt in prompts:
                listed_questions(prompt, self.column)
        if prompts and not self._was_tried:
            self._try(prompts[:TRIALS])
            self._was_tried = True

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score images, of one group where they are compared; NaN for those without an answer that can be read.

        Raises:
            ServiceGoneError: when the endpoint was not back within `patience` seconds.
            RefusedError: when it refuses every request, as with a wrong key.
            RewardError: when `max_cost` is reached.
        """
        finite = images.isfinite().flatten(1).all(dim=1).tolist()
        rows = [row for row in range(len(images)) if finite[row]]
        urls = dict(zip(rows, data_urls(images[rows], self.image_format), strict=True)) if rows else {}
        answers = self._pairs(urls, prompts) if self.whole_groups else self._singles(urls, prompts)
        names = dict.fromkeys(name for numbers in answers.values() for name in numbers)
        columns = {name: [answers.get(row, {}).get(name, math.nan) for row in range(len(images))] for name in names}
        values = torch.tensor(columns.pop("", [math.nan] * len(images)), dtype=torch.float32, device=images.device)
        components = {name: values.new_tensor(column) for name, column in columns.items()}
        return Scores(values, components)

    def counters(self) -> dict[str, float]:
        """What has been asked so far, failed and cost; see `Usage`."""
        return {name: float(number) for name, number in asdict(self.client.usage).items()}

    def _singles(self, urls: Mapping[int, str], prompts: Sequence[Prompt]) -> dict[int, dict[str, float]]:
        """The score of each image, under the empty name, and its parts; images without a score are left out."""
        asked = [(row, question) for row in urls for question in self._questions_of(prompts[row])]
        outcomes = self.client.outcomes([self._request(question.text, [urls[row]]) for row, question in asked])
        _warn_about(outcomes, "questions about images")
        by_row: dict[int, list[tuple[_Question, Numbers | None]]] = {row: [] for row in urls}
        for (row, question), outcome in zip(asked, outcomes, strict=True):
            by_row[row].append((question, outcome.numbers))
        return {row: scored for row, pairs in by_row.items() if (scored := _scored(pairs)) is not None}

    def _pairs(self, urls: Mapping[int, str], prompts: Sequence[Prompt]) -> dict[int, dict[str, float]]:
        """The win rate of each image against its opponents; images of which no pair counts are left out."""
        pairs = _opponents(list(urls), self.opponents)
        asked = [
            (pair, question.text) for i, j in pairs for question in self._questions_of(prompts[i]) for pair in ((i, j), (j, i))
        ]
        outcomes = self.client.outcomes([self._request(text, [urls[i], urls[j]]) for (i, j), text in asked])
        _warn_about(outcomes, "comparisons")
        first_wins: dict[tuple[int, int], list[float]] = {}
        for (pair, _), outcome in zip(asked, outcomes, strict=True):
            number = math.nan if outcome.numbers is None else _mean(outcome.numbers.values())
            first_wins.setdefault(pair, []).append(number)
        rates: dict[int, list[float]] = {}
        for i, j in pairs:
            won = (_mean(first_wins[i, j]) + 1 - _mean(first_wins[j, i])) / 2
            if math.isnan(won):
                continue
            rates.setdefault(i, []).append(won)
            rates.setdefault(j, []).append(1 - won)
        return {row: {"": _mean(of_row)} for row, of_row in rates.items()}

    def _questions_of(self, prompt: Prompt) -> list[_Question]:
        """All that is asked about an image of this prompt."""
        lists = [None] if self.column is None else listed_questions(prompt, self.column)
        return [
            _Question(name, filled(template, prompt, "" if listed is None else listed.text), listed)
            for name, template in self.questions.items()
            for listed in lists
        ]

    def _request(self, question: str, urls: Sequence[str]) -> Request:
        return {"model": self.model, "messages": messages(question, urls, self.system), **self.settings}

    @property
    def model(self) -> str:
        """The model's name at the endpoint.

        Raises:
            RewardError: when none was given and the endpoint has not exactly one.
        """
        if self._model is None:
            try:
                there = self.chat.models()
            except (AwayError, FailedError, TimeoutError) as error:
                raise RewardError(
                    f"the judge at {self.chat.url} does not say which models it has: {error}; give `model`"
                ) from error
            if len(there) != 1:
                raise RewardError(
                    f"the judge at {self.chat.url} has the models {', '.join(there) or 'none'}; choose one by `model`"
                )
            (self._model,) = there
        return self._model

    def _try(self, prompts: Sequence[Prompt]) -> None:
        """Ask each question about a plain picture.

        Raises:
            ValueError: when no answer to one of them can be read.
        """
        picture = torch.linspace(0, 1, TRIAL_SIDE).expand(1, 3, TRIAL_SIDE, TRIAL_SIDE)
        urls = data_urls(picture, self.image_format) * (2 if self.whole_groups else 1)
        hasty = copy.copy(self.chat)
        hasty.retries, hasty.patience = min(self.chat.retries, TRIAL_RETRIES), min(self.chat.patience, TRIAL_PATIENCE)
        trial = JudgeClient(hasty, self.client.read, AnswerCache(None), 1, self.client.price, None)
        for name in self.questions:
            self._try_question(trial, name, prompts, urls)
        if self.client.max_cost is not None and trial.usage.cost == 0:
            raise ValueError(f"the judge at {self.chat.url} does not say how many tokens it counts, so that max_cost has no effect")

    def _try_question(self, trial: JudgeClient, name: str, prompts: Sequence[Prompt], urls: Sequence[str]) -> None:
        """Ask one question about each prompt until an answer can be read.

        Raises:
            ValueError: when none can.
        """
        reasons = []
        for prompt in prompts:
            question = next(question for question in self._questions_of(prompt) if question.name == name)
            try:
                (outcome,) = trial.outcomes([self._request(question.text, urls)])
            except RewardError as error:
                raise ValueError(f"the judge cannot be asked: {error}") from error
            if outcome.numbers is not None:
                return
            reasons.append(outcome.reason)
        which = f" to the question {name!r}" if name else ""
        advice = "Change `question` so that it asks for the form that `read` expects, or `read`"
        if all(reason.startswith("failed") for reason in reasons):
            advice = "See that the address, the model and the fields of the request are those that the endpoint takes"
        raise ValueError(
            f"no answer of the judge at {self.chat.url}{which} in {len(reasons)} trials can be read: "
            f"{'; '.join(dict.fromkeys(reasons))}. {advice}"
        )


def _scored(answers: Sequence[tuple[_Question, Numbers | None]]) -> dict[str, float] | None:
    """The score of one image, under the empty name, and its named parts; None where an answer has no number."""
    by_name: dict[str, list[tuple[_Question, float]]] = {}
    parts: dict[str, float] = {}
    for question, numbers in answers:
        if numbers is None:
            return None
        by_name.setdefault(question.name, []).append((question, _mean(numbers.values())))
        parts |= {_joined(question.name, name): value for name, value in numbers.items() if name}
    scores = {name: _of_list(of_name) for name, of_name in by_name.items()}
    return {**parts, **{name: score for name, score in scores.items() if name}, "": _mean(scores.values())}


def _of_list(answers: Sequence[tuple[_Question, float]]) -> float:
    """The mean of the answers to one template, or the share of yes where a prompt's own questions were put into it."""
    values = [value for _, value in answers]
    listed = [question.listed for question, _ in answers if question.listed is not None]
    return share_of_yes(listed, values) if listed else _mean(values)


def _opponents(rows: Sequence[int], least: int | None) -> list[tuple[int, int]]:
    """Pairs of images: all of them, or those farthest from each other on a ring, so that each has at least so many opponents.

    Continuations of one branch stand next to each other, and would tell least of each other.
    """
    n = len(rows)
    distances = list(range(n // 2, 0, -1))  # at n / 2 an image has one opponent, at any other distance two
    if least is not None:
        opposite = distances[:1] if n % 2 == 0 and least % 2 else []
        others = [d for d in distances if 2 * d < n]
        distances = opposite + others[: -(-(least - len(opposite)) // 2)]
    return [(rows[a], rows[b]) for a, b in combinations(range(n), 2) if min(b - a, n - (b - a)) in distances]


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def _joined(question: str, number: str) -> str:
    return f"{question}/{number}" if question else number


def _warn_about(outcomes: Sequence[Outcome], what: str) -> None:
    """Warn of requests without a number, with the first reasons."""
    reasons = [outcome.reason for outcome in outcomes if outcome.numbers is None]
    if reasons:
        different = list(dict.fromkeys(reasons))
        more = f"; and {len(different) - 3} other reasons" if len(different) > 3 else ""
        warnings.warn(f"no number for {len(reasons)} of {len(outcomes)} {what}: {'; '.join(different[:3])}{more}", stacklevel=4)
