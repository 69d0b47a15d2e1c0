"""Says which prompts a reward's text encoder does not read to their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from varrl_lightning.text_encoders.cuts import cut_prompt, kept_texts, report_cuts
from varrl_lightning.types import Prompt


def warn_of_cuts(
    tokenizer: Any, prompts: Sequence[Prompt], length: int, name: str, plain: Callable[[str], str] = str, prefix: str = ""
) -> None:
    """Warn of prompts that a reward cuts off, naming the words to be written that fall off.

    Args:
        tokenizer: of transformers.
        length: tokens that are read, with the special ones.
        name: the reward's.
        plain: makes of a text what the tokenizer is given.
        prefix: what the reward puts before each prompt, and never before a word.
    """
    texts = {plain(prefix + prompt.text): prompt for prompt in prompts}
    kept = kept_texts(tokenizer, texts, length)
    words = {text: [plain(word) for word in texts[text].words] for text in kept}
    cuts = [cut_prompt(f"prompt {texts[text].id!r}", text, words[text], kept) for text in kept]
    whole = f"{length} tokens{', its prefix included' if prefix else ''}"
    report_cuts(cuts, f"{name} ({whole})", len(prompts), "warn", "leave them as they are")
