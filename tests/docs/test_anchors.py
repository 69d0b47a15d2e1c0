"""Links to headings work on GitHub too, whose anchors are made by another rule than the site's (which its build checks)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.code_blocks import FENCE, ROOT, pages

SITE = "https://github.com/varrl-lightning/varrl-lightning/blob/main/"
LINK = re.compile(r"\]\(([^)\s#]*)#([^)\s]+)\)")


def github_anchors(text: str) -> set[str]:
    """The anchors of a page's headings: small letters, without punctuation, a dash for each space."""
    headings = re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """The links of a page to headings that GitHub does not know by this anchor."""
    found = []
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(SITE):
            path = root / target.removeprefix(SITE)
        elif "://" in target or target.startswith("api/") or "/api/" in target:
            continue  # other sites, and pages that are made of docstrings
        else:
            path = page.parent / target if target else page
        if path.suffix == ".md" and anchor not in github_anchors(path.read_text(encoding="utf-8")):
            found.append(f"{target}#{anchor}")
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_headings_have_the_anchors_that_links_name(page: Path) -> None:
    assert broken(page) == []


def test_anchors_that_differ_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Drafts (K = 0)\n## From 0.1 to 0.2\n```text\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text("[a](b.md#drafts-k-0) [b](b.md#drafts-k--0) [c](b.md#from-01-to-02) [d](#here) [e](b.md#no-heading)\n# Here\n")
    assert broken(page, tmp_path) == ["b.md#drafts-k-0", "b.md#no-heading"]
