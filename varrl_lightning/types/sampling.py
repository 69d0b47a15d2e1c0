"""How tokens are sampled, and which distribution over them is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled.

    Args:
        cfg: guidance strength in the family's form (`VARPolicy.guidance`), one number or one per scale; None for no guidance.
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
        """Check that a setting given per scale has one value for every scale.

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

    @property
    def truncated(self) -> bool:
        """Whether some tokens are never sampled, by top-k or top-p."""
        return self.top_k > 0 or self.top_p < 1

    def greedy(self) -> Sampling:
        """Settings with the same guidance that always take the likeliest token."""
        return replace(self, top_k=1, top_p=1.0)


@dataclass(frozen=True)
class SamplingChanges:
    """Changes to a family's default sampling; `own` keeps the family's value.

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
        """Apply these changes to a default.

        Raises:
            ValueError: when a value is out of its range.
        """
        return replace(default, **{f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != "own"})


@dataclass(frozen=True)
class Score:
    """The distribution that is trained: `VARPolicy.forward` takes log-probabilities under it.

    Args:
        kind: `model`: unguided, temperature 1. `guided`: with classifier-free guidance, untruncated. `sampler`: exactly the
            sampler's distribution: guidance, temperature, top-k and top-p renormalised, the sampled token always in the support,
            which all updates on a rollout share.
            `corrected`: as `model`, with truncated importance weights min(max_weight, pi / mu) per token.
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

    @property
    def truncated(self) -> bool:
        """Whether the distribution is one over a part of the vocabulary: the other kinds are over all of it."""
        return self.kind == "sampler" and self.sampling.truncated


def _numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
