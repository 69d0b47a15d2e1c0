"""What flows through the program, and the legend of dimension names.

Dimensions used in shape annotations everywhere:

    P  prompts                      A  branches of a prompt: the group that GRPO compares
    K  images of a branch: its continuations, or one draft where a stage has none
    N  images = P * A * K, rows in (P, A, K) order
    R  rows of any batch            T  scales
    n  tokens of one scale          L  tokens of a span of scales, scale after scale
    V  vocabulary                   D  bits of a bitwise token
    H, W  pixels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from varrl_lightning.errors import did_you_mean
from varrl_lightning.schedule import Schedule
from varrl_lightning.types.frozen import FrozenDict, FrozenList, frozen_json
from varrl_lightning.types.log_probs import LogProbs
from varrl_lightning.types.normal_form import Case
from varrl_lightning.types.quoting import quoted_words, read_quotes
from varrl_lightning.types.sampling import Sampling, SamplingChanges, Score

__all__ = [
    "Box",
    "Case",
    "FrozenDict",
    "FrozenList",
    "Immutable",
    "LogProbs",
    "Prompt",
    "Rollout",
    "Sampling",
    "SamplingChanges",
    "Score",
    "Scores",
    "Stage",
    "check_choices",
    "quoted_words",
]
T = TypeVar("T")


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
        words: the strings to be rendered; default to what is quoted in the text (`read_quotes`).
        regions: where the words belong, if known.
        category: for evaluation by category.
        label: class index of a class-conditional model.
        negative: negative prompt for guidance.
        size: `(height, width)` of the image in pixels; the model's default when None.
        extra: what rewards and mask sources need beside these: JSON values by name, as a `FrozenDict`.

    Raises:
        ValueError: for a value in `extra` that JSON does not have; names it.
    """

    text: str
    id: str = ""
    words: tuple[str, ...] = ()
    regions: tuple[Box, ...] = ()
    category: str | None = None
    label: int | None = None
    negative: str | None = None
    size: tuple[int, int] | None = None
    extra: Mapping[str, Any] = field(default_factory=FrozenDict)
    unclear_quotes: ClassVar[str] = ""
    """Of a prompt whose words were taken from its quotes: why they may not be those that are meant, or empty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", _extra(self.extra))
        if not self.id:
            object.__setattr__(self, "id", self.text)
        if not self.words:
            quotes = read_quotes(self.text)
            object.__setattr__(self, "words", quotes.strings)
            object.__setattr__(self, "unclear_quotes", quotes.unclear)

    @classmethod
    def from_mapping(cls, line: Mapping[str, Any]) -> Prompt:
        """Build a prompt from a decoded JSON object.

        Raises:
            ValueError: on a missing `text`, an unknown key or a value of the wrong type; the message names the key.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(line) - known)
        if unknown:
            raise ValueError(f"unknown keys {unknown}; a prompt has {sorted(known)}.{did_you_mean(unknown[0], known)}")
        _check_strings(line)
        values = {key: value for key, value in line.items() if value is not None}
        for key, read in (("words", _words), ("regions", _regions), ("label", _label), ("size", _size), ("extra", _extra)):
            if key in values:
                values[key] = read(values[key])
        return cls(**values)


def _check_strings(line: Mapping[str, Any]) -> None:
    if not isinstance(line.get("text"), str) or not line["text"].strip():
        raise ValueError(f"'text' must be a non-empty string, got {line.get('text')!r}")
    for key in ("id", "category", "negative"):
        if line.get(key) is not None and not isinstance(line[key], str):
            raise ValueError(f"{key!r} must be a string, got {line[key]!r}")


def _extra(value: Any) -> FrozenDict:
    if not isinstance(value, Mapping):
        raise ValueError(f"'extra' must be an object of names and values, got {value!r}")
    frozen: FrozenDict = frozen_json(value, "extra")
    return frozen


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
        raise ValueError(f"'words' must be a list of non-empty strings, got {value!r}")
    return tuple(value)


def _regions(value: Any) -> tuple[Box, ...]:
    return tuple(_box(region) for region in _listed(value, "regions"))


def _label(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"'label' must be an integer, got {value!r}")
    return value


def _size(value: Any) -> tuple[int, int]:
    sides = _listed(value, "size")
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"'size' must be [height, width] in pixels, got {value!r}")
    return sides[0], sides[1]


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
    """The scales `[start, stop)` that an update trains, and its groups; prefix, suffix and plain GRPO are values of this.

    Per prompt, `starts` states s_start are sampled and forked into `branches` in all. Scales `[start, stop)` are sampled in each
    branch, and each branch is continued `continuations` times to the last scale. With none, a branch gives one image, its draft:
    the latent of the scales `[0, stop)`, decoded at the final size. The gradient is then exactly that of E[R(draft)], and a biased
    one of E[R], the reward of the images that the model generates.

    Args:
        start: first trained scale a.
        stop: one past the last trained scale b.
        branches: A, the group size.
        continuations: K, >= 0; 0 scores drafts; 1 when `stop` is the last scale.
        starts: number of different s_start per prompt; divides `branches`; 1 when `start` is 0 (there is one empty state).
        name: used in logs.
        with_drafts: whether the draft of each branch is scored too, beside its continuations, K >= 2 then: by how well drafts
            rank the branches (`metrics/rank_agreement.py`). What trains are the continuations alone.
    """

    start: int
    stop: int
    branches: int
    continuations: int = 1
    starts: int = 1
    name: str = "all"
    with_drafts: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a stage needs 0 <= start < stop, got [{self.start}, {self.stop})")
        if self.branches < 2:
            raise ValueError(f"a group needs at least 2 branches to compare, got group_size = {self.branches}")
        if self.continuations < 0:
            raise ValueError(f"num_continuations (K) must be at least 0, which scores drafts, got {self.continuations}")
        if self.starts < 1 or self.branches % self.starts:
            raise ValueError(f"starts must divide the {self.branches} branches, got {self.starts}")
        if self.with_drafts and self.continuations < 2:
            raise ValueError(
                f"drafts are compared with at least 2 whole images of a branch, got continuations = {self.continuations}"
            )

    @property
    def scores_drafts(self) -> bool:
        """Whether the images are drafts: decoded after scale `stop`, without a continuation."""
        return self.continuations == 0

    @property
    def of_drafts(self) -> Stage:
        """The stage that scores the drafts of the same branches, and nothing else."""
        return replace(self, continuations=0, with_drafts=False)

    @property
    def images_per_branch(self) -> int:
        """max(K, 1): the images of each continuation, or the one draft."""
        return max(self.continuations, 1)

    @property
    def images_per_prompt(self) -> int:
        """A * max(K, 1)."""
        return self.branches * self.images_per_branch

    @property
    def scored_per_prompt(self) -> int:
        """The images and the drafts beside them that rewards score: A * (K + 1) with drafts, A * max(K, 1) without."""
        return self.images_per_prompt + self.branches * self.with_drafts


@dataclass(frozen=True)
class Rollout:
    """What one call of the sampler returns.

    Args:
        stage: the stage that was sampled.
        prompts: the P prompts.
        schedule: the scale schedule, the same for all rows.
        tokens: scales `< stage.stop`, rows P * A: all that the update needs.
        tail_tokens: scales `>= stage.stop`, rows P * A * K; no scale where the stage scores drafts.
        images: P * A * K images, or P * A drafts; RGB in [0, 1].
        log_probs: log-probability of each sampled token under the sampler, in scales `[start, stop)`, rows P * A.
        keys: the noise key of each image, a draft's being its branch's; None when a generator was used.
        branches: which of the P * A branches, counted prompt by prompt, the rows are; all of them unless several processes share
            the work.
        drafts: images of the branches themselves, where the stage scores them beside (`with_drafts`).
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
    drafts: Float[Tensor, "R 3 H W"] | None = None

    def __post_init__(self) -> None:
        if not self.branches:
            object.__setattr__(self, "branches", range(len(self.prompts) * self.stage.branches))

    @property
    def of_drafts(self) -> Rollout | None:
        """The same branches as a rollout of which the drafts are the images; None where they were not decoded."""
        if self.drafts is None:
            return None
        return replace(self, stage=self.stage.of_drafts, tail_tokens=[], images=self.drafts, keys=None, drafts=None)

    @property
    def image_prompts(self) -> list[Prompt]:
        """The prompt of each image: (P, A, K) order."""
        owners = [self.prompts[branch // self.stage.branches] for branch in self.branches]
        return [prompt for prompt in owners for _ in range(self.stage.images_per_branch)]


@dataclass(frozen=True)
class Scores:
    """What a reward returns for N images.

    Args:
        values: one return per image.
        components: named parts of it, for the log.
        regions: the boxes that decided the value, one list per image, for mask sources; None when the reward knows no regions.
        valid: False where an image could not be scored; its value is then ignored.
        texts: the words that were read in each image, for pictures and metrics; None when the reward does not read.
        case: the case in which these are compared with the wanted words; see `normal_form`.
        parts: the scores of each reward of a weighted sum, by name; empty for a single reward.
    """

    values: Float[Tensor, " N"]
    components: dict[str, Float[Tensor, " N"]] = field(default_factory=dict)
    regions: Sequence[Sequence[Box]] | None = None
    valid: Bool[Tensor, " N"] | None = None
    texts: Sequence[Sequence[str]] | None = None
    case: Case = "lower"
    parts: Mapping[str, Scores] = field(default_factory=dict)

    @property
    def usable(self) -> Bool[Tensor, " N"]:
        """Mask of the images that have a finite value."""
        finite = torch.isfinite(self.values)
        return finite if self.valid is None else finite & self.valid

    def rows(self, kept: Sequence[int]) -> Scores:
        """The scores of some of the images, by their numbers; a number may occur several times."""
        return replace(
            self,
            values=self.values[list(kept)],
            components={name: values[list(kept)] for name, values in self.components.items()},
            regions=None if self.regions is None else [self.regions[row] for row in kept],
            valid=None if self.valid is None else self.valid[list(kept)],
            texts=None if self.texts is None else [self.texts[row] for row in kept],
            parts={name: part.rows(kept) for name, part in self.parts.items()},
        )

    def to(self, device: torch.device) -> Scores:
        """The same on another device."""
        return replace(
            self,
            values=self.values.to(device),
            components={name: values.to(device) for name, values in self.components.items()},
            valid=None if self.valid is None else self.valid.to(device),
            parts={name: part.to(device) for name, part in self.parts.items()},
        )

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
            case=next((part.case for part in parts if part.texts is not None), "lower"),
        )


def _joined(scores: Sequence[Scores], parts: Sequence[Sequence[Sequence[T]] | None]) -> list[Sequence[T]] | None:
    """The rows of all parts; empty ones for a part of which no image could be scored.

    None where a part that was scored has none: rows of a few images cannot stand for all.
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
