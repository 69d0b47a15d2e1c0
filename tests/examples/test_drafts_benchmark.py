"""The FLOPs that `examples/benchmarks/drafts.py` counts, against a sum over the embedded model's products by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from tiny import untrained_lettering

from varrl_lightning.policies.lettering import LETTERING, RANKS, SLOTS
from varrl_lightning.types import Stage

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "drafts.py"
WIDTH, DEPTH, BRANCHES = 16, 2, 3
PLACE, FEATURES, HEAD, CODES = 24, 96, 24, 512
"""Features of a place, of a cell of the latent and of the head's input; codes of a scale."""


def block(rows: int, tokens: int, seen: int) -> int:
    """Queries, keys, values, output and the four times wider layer; then the two products of attention."""
    return rows * tokens * (2 * 12 * WIDTH**2 + 4 * WIDTH * seen)


def by_hand(scales: int) -> int:
    text = SLOTS + 2
    total, seen = 2 * PLACE * WIDTH * SLOTS + DEPTH * block(1, text, text), text
    height, width = LETTERING.image_size
    for (h, w), rank in zip(LETTERING.grids[:scales], RANKS, strict=False):
        n, area = h * w, 3 * (height // h) * (width // w)
        seen += n
        total += 2 * PLACE * WIDTH * n + DEPTH * block(BRANCHES, n, seen)
        total += 2 * BRANCHES * n * (FEATURES * WIDTH + WIDTH * HEAD + HEAD * CODES + min(rank, area) * area)
    return total


@pytest.mark.parametrize(("K", "scales"), [(0, 4), (1, len(LETTERING))])
def test_flops_are_those_of_the_products(K: int, scales: int) -> None:
    script = runpy.run_path(str(SCRIPT))
    counted = script["count"](script["simulated"](untrained_lettering(WIDTH, DEPTH)), Stage(0, 4, BRANCHES, K))
    assert counted.sampled == by_hand(scales)
    # Of the decoder, its convolutions of each pixel are known to be there.
    assert counted.decoded > 1000 * LETTERING.image_size[0] * LETTERING.image_size[1]
