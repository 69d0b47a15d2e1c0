"""The example that says which colours a model paints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from varrl_lightning.policies.lettering_sign import COLOURS, MATERIALS, Sign
from varrl_lightning.pretraining.rendering import render_signs


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import colours

    return colours


def test_rendered_colours_are_recognised(example: ModuleType) -> None:
    signs = [Sign(("OPEN", "LATE", "TODAY"), colour, material) for colour in COLOURS for material in MATERIALS] * 3
    plain, whole = render_signs(signs, 0)
    wanted = [sign.colour for sign in signs]
    assert example.colours(plain) == wanted
    assert example.colours((plain + whole) / 2) == wanted
    assert example.colours(plain * 0.8) == wanted


def test_entropy_by_hand(example: ModuleType) -> None:
    assert example.entropy(Counter(dict.fromkeys(COLOURS, 5))) == pytest.approx(3.0)
    assert example.entropy(Counter(red=3, blue=1)) == pytest.approx(0.8112781)
    assert example.entropy(Counter(red=3)) == 0
