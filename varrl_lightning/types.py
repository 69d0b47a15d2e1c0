"""What flows through the program, and the legend of dimension names.

Dimensions used in shape annotations everywhere:

    P  prompts                      A  branches of a prompt: the group that GRPO compares
    K  continuations of a branch    N  images = P * A * K, rows in (P, A, K) order
    R  rows of any batch            T  scales
    n  tokens of one scale          L  tokens of a span of scales, scale after scale
    V  vocabulary                   D  bits of a bitwise token
    H, W  pixels
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from varrl_lightning.schedule import Schedule

T = TypeVar("T")
_QUOTED = re.compile(
    r"(?<!\d)\"([^\"]*)\""  # after a digit it means inches
    r"|“([^”]+)”"
    # The closing one follows a character and ends a word; a decade ('90s) opens nothing.
    r"|(?<!\w)(?:'(?!\s|['’]|\d0s\b)|‘(?!\s))(.*?\S)['’](?!\w)"
)
_EDGE_COMMAS = " ,，"


def quoted_words(text: str) -> tuple[str, ...]:
    """The strings that a prompt asks to be written, in order.

    Double or curly quotes; single quotes only at word boundaries, so that `don't` stays whole; commas at the edges are stripped,
    since American usage puts the sentence's own inside; a string repeated inside an earlier one, as whole words, counts once.
    """
    found: list[str] = []
    for match in _QUOTED.finditer(text):
        words = next(g for g in match.groups() if g is not None).strip(_EDGE_COMMAS)
        if words and not any(_within(words, earlier) for earlier in found):
            found.append(words)
    return tuple(found)


def _within(words: str, earlier: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", earlier) is not None


class Immutable:
    """Refuses to be changed, as a frozen dataclass does.

    Lightning walks through the dataclasses in a batch and assigns every field again, unchanged: that is allowed.
    """

    def __setattr__(self, name: str, value: object) -> None:
        new = name not in self.__dict__
        if (new and name not in self.__dataclass_fields__) or (not new and self.__dict__[name] != value):  # type: ignore[attr-defined]
            raise FrozenInstanceError(f"cannot change {name} of a {type(self).__name__}; use dataclasses.replace")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete {name} of a {type(self).__name__}")


@dataclass(unsafe_hash=True)
class Box(Immutable):
    """A rectangle in pixels, `x0 <= x < x1` and `y0 <= y < y1`, origin at the top left."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(unsafe_hash=True)
class Prompt(Immutable):
    """One line of a prompt file.

    Args:
        id: names the prompt in logs and seeds its noise; defaults to the text.
        text: what the generator reads.
        words: the strings to be rendered; default to what is quoted in the text.
        regions: where they belong, if known.
        category: for evaluation by category.
        label: class index of a class-conditional model.
        negative: negative prompt for guidance.
        size: `(height, width)` of the image in pixels; the model's default when None.
    """

    text: str
    id: str = ""
    words: tuple[str, ...] = ()
    regions: tuple[Box, ...] = ()
    category: str | None = None
    label: int | None = None
    negative: str | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", self.text)
        if not self.words:
            object.__setattr__(self, "words", quoted_words(self.text))

    @classmethod
    def from_mapping(cls, line: Mapping[str, Any]) -> Prompt:
        """Build a prompt from a decoded JSON object.

        Raises:
            ValueError: on a missing `text`, an unknown key or a value of the wrong type; the message names the key.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(line) - known)
        if unknown:
            raise ValueError(f"unknown keys {unknown}; a prompt has {sorted(known)}")
        if not isinstance(line.get("text"), str) or not line["text"].strip():
            raise ValueError(f"'text' must be a non-empty string, got {line.get('text')!r}")
        for key in ("id", "category", "negative"):
            if line.get(key) is not None and not isinstance(line[key], str):
                raise ValueError(f"{key!r} must be a string, got {line[key]!r}")
        values = {k: v for k, v in line.items() if v is not None}
        if "words" in values:
            if not isinstance(values["words"], list) or not all(isinstance(w, str) and w.strip() for w in values["words"]):
                raise ValueError(f"'words' must be a list of non-empty strings, got {values['words']!r}")
            values["words"] = tuple(values["words"])
        if "regions" in values:
            values["regions"] = tuple(_box(r) for r in _listed(values["regions"], "regions"))
        if "label" in values and (not isinstance(values["label"], int) or isinstance(values["label"], bool)):
            raise ValueError(f"'label' must be an integer, got {values['label']!r}")
        if "size" in values:
            size = _listed(values["size"], "size")
            if len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
                raise ValueError(f"'size' must be [height, width] in pixels, got {values['size']!r}")
            values["size"] = (size[0], size[1])
        return cls(**values)


def _listed(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{key!r} must be a list, got {value!r}")
    return value


def _box(value: Any) -> Box:
    numeric = isinstance(value, list) and len(value) == 4 and all(isinstance(v, (int, float)) for v in value)
    if not numeric or not (value[0] < value[2] and value[1] < value[3]):
        raise ValueError(f"a region must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1, got {value!r}")
    return Box(*map(float, value))


@dataclass(frozen=True)
class Stage:
    """Optimise the policy over scales `[start, stop)`; prefix, suffix and plain GRPO are values of this.

    Per prompt, `starts` states s_start are drawn and forked into `branches` in all, scales `[start, stop)` are drawn in each
    branch, and each branch is continued `continuations` times to the last scale.

    Args:
        start: first trained scale a.
        stop: one past the last trained scale b.
        branches: A, the group size.
        continuations: K; 1 when `stop` is the last scale.
        starts: number of different s_start per prompt; divides `branches`; 1 when `start` is 0 (there is one empty state).
        name: used in logs.
    """

    start: int
    stop: int
    branches: int
    continuations: int = 1
    starts: int = 1
    name: str = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a stage needs 0 <= start < stop, got [{self.start}, {self.stop})")
        if self.branches < 2:
            raise ValueError(f"a group needs at least 2 branches to compare, got group_size = {self.branches}")
        if self.continuations < 1:
            raise ValueError(f"num_continuations (K) must be at least 1, got {self.continuations}")
        if self.starts < 1 or self.branches % self.starts:
            raise ValueError(f"starts must divide the {self.branches} branches, got {self.starts}")

    @property
    def images_per_prompt(self) -> int:
        """A * K."""
        return self.branches * self.continuations


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        cfg: guidance strength in the family's own form (`VARPolicy.guidance`), one number or one per scale; None for no guidance.
        top_k: keep the k likeliest tokens, ties included; 0 keeps all; 1 is greedy.
        top_p: keep the smallest set with this probability mass, in (0, 1].
        temperature: divides the logits, > 0; one number or one per scale.
    """

    cfg: float | tuple[float, ...] | None = None
    top_k: int = 0
    top_p: float = 1.0
    temperature: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name in ("cfg", "temperature"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.cfg is not None and not all(map(math.isfinite, _numbers(self.cfg))):
            raise ValueError(f"cfg must be finite, or null for no guidance, got {self.cfg}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not all(x > 0 and math.isfinite(x) for x in _numbers(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")

    def check(self, scales: int) -> None:
        """Check that what is said per scale is said for every scale.

        Raises:
            ValueError: names the setting and both numbers.
        """
        for name, value in (("cfg", self.cfg), ("temperature", self.temperature)):
            if isinstance(value, tuple) and len(value) != scales:
                raise ValueError(f"sampling.{name} must be one number or one for each of the {scales} scales, got {len(value)}")

    def cfg_at(self, scale: int) -> float | None:
        """Guidance strength of one scale."""
        return self.cfg[scale] if isinstance(self.cfg, tuple) else self.cfg

    def temperature_at(self, scale: int) -> float:
        """Temperature of one scale."""
        return self.temperature[scale] if isinstance(self.temperature, tuple) else self.temperature

    def greedy(self) -> Sampling:
        """The same guidance, always the likeliest token."""
        return replace(self, top_k=1, top_p=1.0)


@dataclass(frozen=True)
class SamplingChanges:
    """What differs from a family's own way of sampling; `own` leaves a setting as it is.

    Args:
        cfg: as in `Sampling`.
        top_k: as in `Sampling`.
        top_p: as in `Sampling`.
        temperature: as in `Sampling`.
    """

    cfg: float | tuple[float, ...] | Literal["own"] | None = "own"
    top_k: int | Literal["own"] = "own"
    top_p: float | Literal["own"] = "own"
    temperature: float | tuple[float, ...] | Literal["own"] = "own"

    def over(self, default: Sampling) -> Sampling:
        """The default with these changes.

        Raises:
            ValueError: when a value is out of its range.
        """
        return replace(default, **{f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != "own"})


@dataclass(frozen=True)
class Score:
    """Which distribution is trained: what `VARPolicy.forward` takes the log-probability of.

    Args:
        kind: `model`: unguided, temperature 1. `guided`: with classifier-free guidance, untruncated. `sampler`: exactly what was
            drawn from: guidance, temperature, top-k and top-p renormalised, the drawn token always in the support. `corrected`:
            as `model`, with truncated importance weights min(max_weight, pi / mu) per token.
        sampling: the sampler's settings.
        unconditional_gradient: whether the gradient flows through the unconditional half too (`flows`), or not (`detached`).
        max_weight: c, the truncation of the importance weights; >= 1.
    """

    kind: Literal["model", "sampler", "guided", "corrected"] = "model"
    sampling: Sampling = field(default_factory=Sampling)
    unconditional_gradient: Literal["flows", "detached"] = "flows"
    max_weight: float = 2.0

    def __post_init__(self) -> None:
        kinds = ("model", "sampler", "guided", "corrected")
        if self.kind not in kinds:
            raise ValueError(f"score must be one of {', '.join(kinds)}, got {self.kind!r}")
        if not self.max_weight >= 1:
            raise ValueError(f"max_weight must be >= 1, got {self.max_weight}")

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is needed."""
        return self.kind in ("sampler", "guided") and self.sampling.cfg is not None


@dataclass(frozen=True)
class Rollout:
    """What one call of the sampler drew.

    Args:
        stage: what was asked for.
        prompts: the P prompts.
        schedule: the scale schedule, the same for all rows.
        tokens: scales `< stage.stop`, rows P * A: all that the update needs.
        tail_tokens: scales `>= stage.stop`, rows P * A * K.
        images: P * A * K images, RGB in [0, 1].
        log_probs: the sampler's own log-probability of each drawn token in scales `[start, stop)`, rows P * A.
        keys: the noise key of each image; None when a generator was used.
        branches: which of the P * A branches, counted prompt by prompt, the rows are; all of them unless several processes share
            the work.
    """

    stage: Stage
    prompts: Sequence[Prompt]
    schedule: Schedule
    tokens: list[Int[Tensor, "R _n ..."]]
    tail_tokens: list[Int[Tensor, "N _n ..."]]
    images: Float[Tensor, "N 3 H W"]
    log_probs: list[Float[Tensor, "R _n"]]
    keys: Int[Tensor, " N"] | None = None
    branches: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.branches:
            object.__setattr__(self, "branches", range(len(self.prompts) * self.stage.branches))

    @property
    def image_prompts(self) -> list[Prompt]:
        """The prompt of each image: (P, A, K) order."""
        owners = [self.prompts[branch // self.stage.branches] for branch in self.branches]
        return [prompt for prompt in owners for _ in range(self.stage.continuations)]


@dataclass(frozen=True)
class Scores:
    """What a reward says of N images.

    Args:
        values: one return per image.
        components: named parts of it, for the log.
        regions: the boxes that decided the value, one list per image, for mask sources; None when the reward has no notion of it.
        valid: False where an image could not be scored; its value is then ignored.
        texts: the words that were read in each image, for pictures and metrics; None when the reward does not read.
        parts: what each reward of a weighted sum said, by name; empty for a reward of its own.
    """

    values: Float[Tensor, " N"]
    components: dict[str, Float[Tensor, " N"]] = field(default_factory=dict)
    regions: Sequence[Sequence[Box]] | None = None
    valid: Bool[Tensor, " N"] | None = None
    texts: Sequence[Sequence[str]] | None = None
    parts: Mapping[str, Scores] = field(default_factory=dict)

    @property
    def usable(self) -> Bool[Tensor, " N"]:
        """Where a finite value exists."""
        finite = torch.isfinite(self.values)
        return finite if self.valid is None else finite & self.valid

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """Scores of several batches of images as those of one; a component that a batch lacks is NaN there."""
        names = dict.fromkeys(name for part in parts for name in part.components)
        absent = [torch.full_like(part.values, torch.nan) for part in parts]
        return Scores(
            values=torch.cat([part.values for part in parts]),
            components={
                name: torch.cat([part.components.get(name, nan) for part, nan in zip(parts, absent, strict=True)]) for name in names
            },
            regions=_joined(parts, [part.regions for part in parts]),
            valid=torch.cat([part.usable for part in parts]),
            texts=_joined(parts, [part.texts for part in parts]),
        )


@dataclass(frozen=True)
class LogProbs:
    """Per-token quantities of scales `[start, stop)`, lists over scales of (rows, n_t), in nats.

    Args:
        log_prob: log pi(token), the sum over bits for a bitwise family.
        entropy: entropy of pi at each token.
        kl: exact categorical KL(pi || reference) at each token, when a reference was given.
        reference_log_prob: log reference(token), when a reference was given.
        bit_log_prob: (rows, n_t, bits) for a bitwise family.
    """

    log_prob: list[Float[Tensor, "R _n"]]
    entropy: list[Float[Tensor, "R _n"]]
    kl: list[Float[Tensor, "R _n"]] | None = None
    reference_log_prob: list[Float[Tensor, "R _n"]] | None = None
    bit_log_prob: list[Float[Tensor, "R _n D"]] | None = None


def _joined(scores: Sequence[Scores], parts: Sequence[Sequence[Sequence[T]] | None]) -> list[Sequence[T]] | None:
    """The rows of all parts; empty ones for a part of which no image could be scored.

    None where a part that was scored has none: what is known of some images only is known of none.
    """
    rows: list[Sequence[T]] = []
    for score, part in zip(scores, parts, strict=True):
        if part is None and bool(score.usable.any()):
            return None
        rows += part if part is not None else [()] * len(score.values)
    return None if all(part is None for part in parts) else rows


def check_choices(options: Any) -> None:
    """Check every field of a dataclass that is annotated with a `Literal`.

    Raises:
        ValueError: names the field, its value and the choices.
    """
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}, got {value!r}")


def _numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
