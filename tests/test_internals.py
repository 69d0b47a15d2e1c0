"""The site's page on how the package is built names functions that exist; that its links do, tests/docs sees."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8")
REPOSITORY = "https://github.com/varrl-lightning/varrl-lightning/blob/main/"


def test_a_stop_of_a_route_names_functions_of_its_files() -> None:
    stops = re.findall(r"^\d+\. (.*)$", PAGE, flags=re.MULTILINE)
    assert len(stops) > 40
    for stop in stops:
        files = re.findall(rf"\]\({re.escape(REPOSITORY)}([^)]+\.py)\)", stop)
        source = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        names = re.findall(r"`([a-z_]+_[a-z_]+)`", stop)
        assert [name for name in names if files and name not in source] == [], stop
