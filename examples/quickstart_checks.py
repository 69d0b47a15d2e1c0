"""What the quick-start's reward does not see: a second reader, colours, and words that nobody asked for.

    python examples/quickstart_checks.py [CHECKPOINT] [--output FILE.json]

Samples an image of each test prompt, from a checkpoint or from the model that comes with the package, and prints as JSON: word
accuracy by the reward's reader and by Tesseract, how many of the named colours were painted, the entropy in bits of the colours
that the model chose, and the number of images in which more words were read than their prompts ask for.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colours import colours, entropy
from where_it_starts import read

from varrl_lightning import VARGRPO, Prompt, Scores
from varrl_lightning.evaluation.evaluate import sample_images
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lettering import LetteringPolicy, sign_of
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.tesseract import TesseractReward


def with_extra_words(scores: Scores, prompts: Sequence[Prompt]) -> int:
    """The number of images in which more words were read than were asked for."""
    return sum(len(texts) > len(prompt.words) for texts, prompt in zip(scores.texts or (), prompts, strict=True))


def checks(policy: VARPolicy, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """All measures of one model."""
    images = sample_images(policy, prompts, policy.default_sampling, seed=0)
    painted, asked = colours(images), [sign_of(prompt).colour for prompt in prompts]
    kept = [is_painted == wanted for is_painted, wanted in zip(painted, asked, strict=True) if wanted]
    chosen = Counter(is_painted for is_painted, wanted in zip(painted, asked, strict=True) if not wanted)
    ocr = OCRReward(detect=False, max_line_width=96, min_confidence=0.5)
    tesseract = TesseractReward(detect=False, min_confidence=0, min_length=1)  # as the automatic judge: a word missed is missed
    return {
        "prompts": len(prompts),
        "word_accuracy": round(read(images, prompts, ocr)["word_accuracy"], 4),
        "tesseract_word_accuracy": round(read(images, prompts, tesseract)["word_accuracy"], 4),
        "named_colours": len(kept),
        "named_colours_kept": sum(kept),
        "chosen_colours_entropy": round(entropy(chosen), 3),
        "images_with_extra_words": with_extra_words(ocr(images, prompts), prompts),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="of a run; the model that comes with the package, if none is given")
    parser.add_argument("--prompts", default="builtin:lettering/test.jsonl")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write it there, too")
    arguments = parser.parse_args()
    path = arguments.checkpoint
    policy = LetteringPolicy.from_pretrained() if path is None else VARGRPO.load_from_checkpoint(path).policy
    text = json.dumps(checks(policy, load_prompts(arguments.prompts)), indent=1)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
