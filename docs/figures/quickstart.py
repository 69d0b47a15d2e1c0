"""Makes the small copy of examples/figures/quickstart.png that the site shows: `python docs/figures/quickstart.py`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SOURCE = HERE.parent.parent / "examples" / "figures" / "quickstart.png"
COLOURS = 256


def main() -> None:
    """Write quickstart.png beside this file, with `COLOURS` colours: a third of the bytes."""
    small = Image.open(SOURCE).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(HERE / "quickstart.png", optimize=True)


if __name__ == "__main__":
    main()
