"""Measures how long the sentences of the README and of the site's pages are: `python docs/hooks/sentences.py [FILE ...]`.

It prints, page by page, the number of sentences, their median length in words, that of those outside of tables, and the longest.
It exits with 1 where a median is above 16. A sentence ends with `.`, `!` or `?` before a space, or with its paragraph. An item of a
list and a cell of a table are sentences of their own. Left out: code blocks, headings, the addresses of links, pictures, and what
has no word, as most cells with numbers. The changelog's page is exempt.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MOST = 16
EXEMPT = ("docs/changelog.md",)
FENCE = re.compile(r"^ *(```+|~~~+)[^\n]*\n.*?^ *\1 *$", flags=re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}(?! *(?:[-*+]|\d+\.) ).*\n)+", flags=re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->|^---\n.*?^---$|<[^>\n]+>|\{[:.#][^}\n]*\}", flags=re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^(?::::.*(?:\n +.*)*|#.*|!!! \w+|\?\?\?\+? \w+|=== |--8<--.*)", flags=re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
ITEM = re.compile(r"^ *(?:[-*+]|\d+\.) +|^ *> ?", flags=re.MULTILINE)
RULE = re.compile(r"^[ |:-]+$", flags=re.MULTILINE)
CODE = re.compile(r"`+[^`\n]+`+")
END = re.compile(r"(?<=[.!?])[)\"'*_]*\s+|\n")
WORD = re.compile(r"[^\W\d_]")


def plain(text: str) -> str:
    """A page without what nobody reads as a sentence; inline code is one word."""
    text = COMMENT.sub("", INDENTED.sub("", DIRECTIVE.sub("", FENCE.sub("", text))))
    return RULE.sub("", CODE.sub("code", LINK.sub(r"\1", PICTURE.sub("", text))))


def lengths(parts: Iterable[str]) -> list[int]:
    """The number of words of each sentence in these texts."""
    found = (sentence for part in parts for sentence in END.split(" ".join(part.split())))
    return [len(sentence.split()) for sentence in found if WORD.search(sentence)]


def sentences(text: str) -> tuple[list[int], list[int]]:
    """The number of words of each sentence of a page: outside of tables, and in their cells."""
    prose, cells = [], []
    for paragraph in re.split(r"\n\s*\n", plain(text)):
        if paragraph.lstrip().startswith("|"):
            cells += [cell for line in paragraph.splitlines() for cell in line.split("|")]
        else:
            prose += ITEM.split(paragraph)
    return lengths(prose), lengths(cells)


def pages() -> list[Path]:
    """README.md and the pages of docs/."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page.relative_to(ROOT).as_posix() not in EXEMPT]


def main(files: list[str]) -> int:
    """Print the table; 1 where a median is above `MOST`."""
    status = 0
    print(f"{'page':<32} sentences  median  outside of tables  longest")
    for page in map(Path, files) if files else pages():
        name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else str(page)
        prose, cells = sentences(page.read_text(encoding="utf-8"))
        if prose or cells:
            every, outside = statistics.median(prose + cells), statistics.median(prose or [0])
            wrong = max(every, outside) > MOST
            row = f"{name:<32} {len(prose + cells):>9}  {every:>6g}  {outside:>17g}  {max(prose + cells):>7}"
            print(f"{row}  too long" if wrong else row)
            status |= wrong
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
