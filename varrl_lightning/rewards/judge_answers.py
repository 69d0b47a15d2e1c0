"""Reads numbers out of what a judge answered; an answer of another form is no number."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from varrl_lightning.rewards.chat import AnswerToken, ChatAnswer
from varrl_lightning.rewards.http_request import shortened

_THOUGHTS = re.compile(r"^.*</think(?:ing)?>", re.DOTALL)
"""What a reasoning model thinks before it answers."""
_OPEN_THOUGHT = re.compile(r"<think(?:ing)?>")
_GOES_ON = re.compile(r"[.,]?\d")
"""Behind a number: it was not the whole of it, or has a decimal comma."""
_WHOLE = ""
"""The part of an answer from which a single number is read."""


class UnreadableError(ValueError):
    """An answer is not of the form that it has to have."""


@dataclass(frozen=True)
class AnswerReader:
    """How a number is read from an answer: by default, all of it must be one.

    Where the number is:

    - `pattern`: a regular expression whose first group is the number (its last match counts, and must be the whole number).
    - `field`: a path in the JSON object of the answer, such as `score` or `scores.style`.
    - Either may be a mapping of names to several; the score is then their mean, and each is logged by its name.
    - `tokens`: score tokens and their values. The score is their expected value under the model's probabilities of one token,
      sum_i p_i v_i / sum_i p_i (as G-Eval, arXiv 2303.16634). The server must give log-probabilities; a token beyond the 20
      likeliest, the most that the protocol has, counts as impossible.

    Args:
        pattern, field, tokens: as above; one of them at most.
        choices: words in place of numbers, with their values; the case and marks around the word do not count. In YAML, `yes` and
            `no` need no quotes.
        low, high: the range of a number, in the answer's own units; one outside is unreadable.
        after: of `tokens`: the text right before the token; by default the first token that is not blank counts.
        min_mass: of `tokens`: the least probability of all score tokens together, in (0, 1].

    Raises:
        ValueError: on options that exclude each other, or a value out of its range.
    """

    pattern: str | dict[str, str] | None = None
    field: str | dict[str, str] | None = None
    tokens: dict[Any, float] | None = None
    choices: dict[Any, float] | None = None
    low: float | None = None
    high: float | None = None
    after: str = ""
    min_mass: float = 0.5

    def __post_init__(self) -> None:
        given = [name for name in ("pattern", "field", "tokens") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"an answer is read by one of pattern, field and tokens, got {' and '.join(given)}")
        if self.tokens is not None and self.choices is not None:
            raise ValueError("tokens have values of their own; leave choices out")
        for name in ("tokens", "choices"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, _named_values(name, values))
        _check_digits(self.tokens or {})
        for place in self._places().values() if self.pattern is not None else ():
            _check_pattern(place)
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if not 0 < self.min_mass <= 1:
            raise ValueError(f"min_mass must be in (0, 1], got {self.min_mass}")

    @property
    def wants_log_probs(self) -> bool:
        """Whether the server has to give log-probabilities."""
        return self.tokens is not None

    @property
    def within_one(self) -> bool:
        """Whether every number that it reads is in [0, 1]."""
        values = self.tokens or self.choices
        bounds = (self.low, self.high) if values is None else (min(values.values()), max(values.values()))
        return bounds[0] is not None and bounds[1] is not None and bounds[0] >= 0 and bounds[1] <= 1

    def read(self, answer: ChatAnswer) -> dict[str, float]:
        """The numbers of an answer, by their names; a single one has the empty name.

        Raises:
            UnreadableError: says what was expected and what the answer was.
        """
        if self.tokens is not None:
            return {_WHOLE: self._expected(answer)}
        text = _THOUGHTS.sub("", answer.text).strip()
        if _OPEN_THOUGHT.search(text):
            raise UnreadableError(f"the answer ends within a thought; raise max_tokens: {shortened(text)!r}")
        is_word = self.choices is not None and self.pattern is None and self.field is None
        if answer.truncated and not is_word:  # of a number, and of a text, the rest may say something else
            raise UnreadableError(f"the answer is cut off; raise max_tokens: {shortened(text)!r}")
        return {name: self._number(self._part(text, place), text) for name, place in self._places().items()}

    def _places(self) -> dict[str, str]:
        """Names of the numbers, each with its pattern, its field or nothing."""
        place = self.pattern if self.pattern is not None else self.field
        return dict(place) if isinstance(place, Mapping) else {_WHOLE: place or ""}

    def _part(self, text: str, place: str) -> Any:
        if self.pattern is not None:
            matches = list(re.finditer(place, text))
            if not matches:
                raise UnreadableError(f"nothing in the answer matches {place!r}: {shortened(text)!r}")
            if self.choices is None and _GOES_ON.match(text, matches[-1].end(1)):
                raise UnreadableError(f"the number goes on behind what {place!r} matches: {shortened(text)!r}")
            return matches[-1].group(1)
        return text if self.field is None else _field(text, place)

    def _number(self, part: Any, text: str) -> float:
        """The value of a part of an answer."""
        if self.choices is not None:
            word = _plain_word(str(part))
            if word not in self.choices:
                raise UnreadableError(f"expected one of {', '.join(self.choices)}, got {shortened(text)!r}")
            return float(self.choices[word])
        try:
            number = float(part)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or isinstance(part, bool):
            raise UnreadableError(f"expected a number{self._range()}, got {shortened(text)!r}")
        if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
            raise UnreadableError(f"expected a number{self._range()}, got {number:g} in {shortened(text)!r}")
        return number

    def _range(self) -> str:
        low, high = ("" if bound is None else f"{bound:g}" for bound in (self.low, self.high))
        return f" in [{low or '-inf'}, {high or 'inf'}]" if low or high else ""

    def _expected(self, answer: ChatAnswer) -> float:
        """sum_i p_i v_i / sum_i p_i over the score tokens."""
        if answer.tokens is None:
            raise UnreadableError(
                "the server gave no log-probabilities; `tokens` needs a server that answers `logprobs` and `top_logprobs`, as vLLM "
                "and SGLang do; or read the answer by pattern, field or choices"
            )
        assert self.tokens is not None
        masses = dict.fromkeys(self.tokens, 0.0)
        for token, log_prob in self._token(answer.tokens, answer.text).likeliest.items():
            word = _plain_word(token)
            if word in masses:
                masses[word] += math.exp(log_prob)
        mass = sum(masses.values())
        if not mass >= self.min_mass:
            raise UnreadableError(
                f"the tokens {', '.join(self.tokens)} have a probability of {mass:.2g} together, less than min_mass "
                f"{self.min_mass:g}; the answer was {shortened(answer.text)!r}"
            )
        return sum(p * self.tokens[word] for word, p in masses.items()) / mass

    def _token(self, tokens: tuple[AnswerToken, ...], text: str) -> AnswerToken:
        """The token that is the score: the first that is not blank, behind `after`."""
        before = ""
        for token in tokens:
            if token.text.strip() and before.rstrip().endswith(self.after.rstrip()):
                return token
            before += token.text
        where = f"after {self.after!r}" if self.after else "that is not blank"
        raise UnreadableError(f"the answer has no token {where}: {shortened(text)!r}")


def _named_values(name: str, values: Mapping[Any, float]) -> dict[str, float]:
    """Words and their values; YAML's `yes` and `no` are words here.

    Raises:
        ValueError: for fewer than two words, words that are equal, or a value that is not finite.
    """
    words = [(word, float(value)) for key, value in values.items() for word in _words(key)]
    plain = {_plain_word(word): value for word, value in words}
    if len(plain) < 2 or len(plain) != len(words) or not all(map(math.isfinite, plain.values())):
        raise ValueError(f"{name} must be a mapping of at least two different words to finite numbers, got {dict(values)}")
    return plain


def _words(key: Any) -> tuple[str, ...]:
    """What a key may have been in the file: YAML reads `yes`, `true` and `on` as the same truth value."""
    word = str(key).casefold() if isinstance(key, bool) else str(key)
    return {"true": ("yes", "true"), "false": ("no", "false")}.get(word, (word,))


def _plain_word(text: str) -> str:
    """A word without its case and without the marks and blanks around it."""
    return re.sub(r"^[\W_]+|[\W_]+$", "", text).casefold()


def _check_digits(tokens: Mapping[str, float]) -> None:
    """Check that no number among score tokens begins another, since most tokenizers write digit by digit.

    Raises:
        ValueError: names the two.
    """
    digits = sorted(word for word in tokens if word.isdecimal())
    for short, long in pairwise(digits):
        if long.startswith(short):
            raise ValueError(
                f"tokens: {short!r} begins {long!r}, and a model that writes digit by digit has one token for both; take numbers "
                "of one digit, or read by pattern"
            )


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
    if groups < 1:
        raise ValueError(f"pattern {pattern!r} needs a group around the number, such as 'Score: ([0-9.]+)'")


def _field(text: str, path: str) -> Any:
    """A value in the JSON object of an answer, which may stand in a block of code or behind other text.

    Raises:
        UnreadableError: when there is no object, or no such field.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1])
        for name in path.split("."):
            value = value[name]
    except (ValueError, TypeError, KeyError) as error:
        raise UnreadableError(f"expected a JSON object with the field {path!r}, got {shortened(text)!r}") from error
    return value
