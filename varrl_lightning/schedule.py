"""The scale schedule of a next-scale generator: which token grids, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Schedule:
    """The token grids (h_t, w_t) of scales t = 0..T-1, coarse to fine.

    Scales are counted from 0 in code; the paper counts from 1. A prefix of m scales is `[0, m)`.

    Args:
        grids: one `(h, w)` per scale, in tokens.
        stride: pixels per token of the last grid, `(vertical, horizontal)`.
    """

    grids: tuple[tuple[int, int], ...]
    stride: tuple[int, int] = (16, 16)

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("a schedule needs at least one scale, got none")
        for grid in self.grids:
            if len(grid) != 2 or min(grid) < 1:
                raise ValueError(f"every scale needs a grid (h, w) of at least (1, 1), got {grid}")

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens n_t = h_t * w_t of each scale."""
        return tuple(h * w for h, w in self.grids)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First token of each scale in the flattened sequence, and the total at the end: T + 1 numbers."""
        return tuple(accumulate(self.lengths, initial=0))

    def span(self, start: int, stop: int) -> int:
        """Number of tokens in scales `[start, stop)`."""
        return self.offsets[stop] - self.offsets[start]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the finished image, in pixels."""
        h, w = self.grids[-1]
        return h * self.stride[0], w * self.stride[1]

    def scales_up_to(self, resolution: int) -> int:
        """m_r, the number of scales whose grid covers at most `resolution` x `resolution` pixels (the paper's m_256).

        Counts the scales with `h * w * stride^2 <= resolution^2`: 12 of NextFlow's 18 for 256.

        Raises:
            ValueError: when not even the first scale is that small.
        """
        pixels_per_token = self.stride[0] * self.stride[1]
        count = sum(n * pixels_per_token <= resolution**2 for n in self.lengths)
        if count == 0:
            raise ValueError(f"no scale fits resolution {resolution}: the first covers {self.lengths[0] * pixels_per_token} pixels")
        return count

    def resolve_m(self, m: int | str) -> int:
        """The middle step as a number of scales: `m` itself, or a resolution written `"256px"`.

        Raises:
            ValueError: when it is not within [1, T].
        """
        if isinstance(m, str):
            digits = m.removesuffix("px")
            if not (m.endswith("px") and digits.isdigit()):
                raise ValueError(f"m must be a number of scales or a resolution such as '256px', got {m!r}")
            return self.scales_up_to(int(digits))
        if not isinstance(m, int):
            raise ValueError(f"m must be a whole number of scales or a resolution such as '256px', got {m!r}")
        if not 1 <= m <= len(self):
            raise ValueError(f"m must be within [1, {len(self)}], the number of scales, got {m}")
        return m


def square(sides: Sequence[int], stride: int = 16) -> Schedule:
    """A schedule of square grids."""
    return Schedule(tuple((s, s) for s in sides), (stride, stride))


VAR_256 = square((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
VAR_512 = square((1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
NEXTFLOW_1024 = square((1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64))
"""Table 6 of the paper."""
