"""Reads the code blocks of the README and of the site's pages, and splits console blocks into commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<tag>[^\n]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$", re.MULTILINE | re.DOTALL
)
SAVED = re.compile(r"\b[Ss]ave\b[^`]*`([\w-]+\.(?:py|yaml|jsonl?|toml))`[^`]*$")
HEREDOC = re.compile(r" *<<-?'?(\w+)'?(.*)\n(?:.*\n)*?\1$", flags=re.MULTILINE)
LOOP = re.compile(r"\bfor (\w+) in ([^;\n]+?)\s*(?:;|\n)\s*do\b")
ASSIGNED = re.compile(r"^(?:export )?([A-Za-z_]\w*)=(\S+)$", flags=re.MULTILINE)
BETWEEN = {"&&", "||", ";", "|", "&", "(", ")", ";;"}
WORDS_OF_BASH = {"do", "then", "else", "time", "exec", "nohup", "sudo"}
SILENT_WORDS = {"for", "done", "if", "fi", "while", "set", "[", "[[", "}", "{", "#SBATCH"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    tag: str
    text: str
    saved_as: str | None = None
    """The file that the paragraph before the block says to save it as."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The README and the pages whose blocks are tested."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, without their indentation; the tag is the first word behind the fence."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    found = []
    for match in FENCE.finditer(text):
        width = len(match["indent"])
        lines = [line[width:] for line in match["text"].splitlines()]
        tag = (match["tag"].split() or [""])[0]
        saved = SAVED.search(text[: match.start()].rstrip().rpartition("\n\n")[2])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(name, line, tag, "\n".join(lines) + "\n", saved[1] if saved else None))
    return found


def save_files(page: str, folder: Path) -> None:
    """Write the files that a page tells its reader to save."""
    for block in blocks(ROOT / page):
        if block.saved_as is not None:
            (folder / block.saved_as).write_text(block.text, encoding="utf-8")


def tagged(tag: str) -> list[Block]:
    """All blocks with a tag."""
    return [block for page in pages() for block in blocks(page) if block.tag == tag]


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a console block: no assignments before them, no redirections, variables replaced.

    Raises:
        ValueError: when a quote is left open.
    """
    script = HEREDOC.sub(r"\2", script.replace("\\\n", " "))
    values = {name: items.split()[0] for name, items in LOOP.findall(script)}
    values |= dict(ASSIGNED.findall(script))
    script = re.sub(r"\$\{?(\w+)\}?", lambda name: values.get(name[1], "1"), re.sub(r"\$\([^)]*\)", "1", script))
    for line in script.splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if word not in BETWEEN:
                words.append(word)
            else:
                if simple := _simple(words):
                    yield simple
                words = []


def _simple(words: list[str]) -> list[str]:
    """One command without what bash takes for itself."""
    while words and (words[0] in WORDS_OF_BASH or re.match(r"[A-Za-z_]\w*=", words[0])):
        words = words[1:]
    if not words or words[0] in SILENT_WORDS or words[0] == "export":
        return []
    return words[: _redirection(words)]


def _redirection(words: list[str]) -> int:
    """Where a command's redirections begin."""
    for i, word in enumerate(words):
        if re.fullmatch(r"[<>]+&?", word):
            return i - 1 if words[i - 1] == "2" else i
    return len(words)
