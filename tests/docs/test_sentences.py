"""Pages are in short sentences, by docs/hooks/sentences.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "docs" / "hooks" / "sentences.py"
PAGE = """# A heading with a great many words that nobody counts here

One two three. Four [five](https://example.org/a%20b) `varrl fit --config x` six?
Seven eight
nine.

```bash
these words are code and so they are not counted by anyone at all
```

| Head | Other head |
|---|---|
| one cell | two more words |
| 1.5 | |

- an item
- another: with a part

::: varrl_lightning.VARGRPO
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_the_median_sentence_of_each_page_is_short() -> None:
    done = run()
    assert done.returncode == 0, done.stdout


def test_what_counts_as_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    done = run(str(tmp_path / "page.md"))
    # One two three / Four five code six / Seven eight nine / four cells / an item / another: with a part
    assert done.stdout.splitlines()[1].split()[-4:] == ["9", "3", "3", "4"], done.stdout
    assert done.returncode == 0


def test_long_sentences_are_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("word " * 17 + "end.\n", encoding="utf-8")
    assert run(str(tmp_path / "page.md")).returncode == 1
