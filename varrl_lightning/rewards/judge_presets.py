"""Questions and readings of known judges."""

from __future__ import annotations

from dataclasses import dataclass

from varrl_lightning.errors import did_you_mean
from varrl_lightning.rewards.judge_answers import AnswerReader
from varrl_lightning.rewards.judge_questions import QUESTION


@dataclass(frozen=True)
class Preset:
    """What a judge is asked, and how its answer is read.

    Args:
        question: template of the text beside the image, or the two images.
        read: how its answer is read.
        max_tokens: length of the answer.
        question_column: column of the prompt file with questions of the prompt's own.
    """

    question: str
    read: AnswerReader
    max_tokens: int
    question_column: str | None = None


_AXES = ("Alignment", "Coherence", "Style")

UNIFIED_REWARD = Preset(
    question=(
        "Rate the generated image against its text caption on three axes, each from 1 to 5:\n"
        "- Alignment Score: whether the image shows what the caption says.\n"
        "- Coherence Score: whether the image is consistent in itself, without glitches and distorted objects.\n"
        "- Style Score: how beautiful the image is, whatever the caption says.\n\n"
        "Write your answer in this form:\n\n"
        "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"
        "Text Caption: [{text}]"
    ),
    read=AnswerReader(
        pattern={axis.lower(): rf"{axis} Score(?: \(1-5\))?:\s*([0-9]+(?:\.[0-9]+)?)" for axis in _AXES},
        low=1,
        high=5,
    ),
    max_tokens=256,
)
UNIFIED_REWARD_PAIRS = Preset(
    question=(
        "Two images were generated from one text caption. Compare them by how well they show what the caption says, and by their "
        'visual quality. End with one of "Image 1 is better.", "Image 2 is better." and "Both images are equally good."\n\n'
        "Text Caption: [{text}]"
    ),
    read=AnswerReader(
        pattern=r"(?i)(image 1 is better|image 2 is better|both images are equally good)",
        choices={"image 1 is better": 1.0, "image 2 is better": 0.0, "both images are equally good": 0.5},
    ),
    max_tokens=1024,
)
YES_NO = Preset(
    question=f"{{{QUESTION}}}\nAnswer with one word, yes or no.",
    read=AnswerReader(choices={"yes": 1.0, "no": 0.0}),
    max_tokens=4,
    question_column="questions",
)
SINGLE = {"unified_reward": UNIFIED_REWARD, "yes_no": YES_NO}
PAIRS = {"unified_reward": UNIFIED_REWARD_PAIRS}


def preset_named(name: str, pairwise: bool) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: when there is none for this mode; lists those that there are.
    """
    known = PAIRS if pairwise else SINGLE
    if name not in known:
        mode = " for pairs" if pairwise else ""
        raise ValueError(f"there is no preset {name!r}{mode}.{did_you_mean(name, known)} There are: {', '.join(known)}.")
    return known[name]
