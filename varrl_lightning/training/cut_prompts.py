"""Says which prompts the policy's text encoder cuts off, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.text_encoders.cuts import Cut, CutPrompts, cut_prompt, report_cuts
from varrl_lightning.types import Prompt

_TOLD: WeakSet[VARPolicy] = WeakSet()
"""Policies of which a cut has been said: a foreign loader's batches are too many to say it of each."""
INSTEAD = "go on with them as they are by guards.cut_prompts: warn"


def check_cut_prompts(prompts: Sequence[Prompt], policy: VARPolicy, cut_prompts: CutPrompts) -> None:
    """Check that the policy's text encoder reads the prompts to their ends, and every word that they ask for.

    A prompt or negative prompt that is cut off without losing a word to be written is a warning.

    Raises:
        ValueError: when words fall off, unless `cut_prompts` is `warn`; names the first prompts and their words.
    """
    negatives = [prompt.negative for prompt in prompts if prompt.negative]
    if isinstance(own := getattr(policy, "negative", None), str):
        negatives.append(own)
    kept = policy.kept_texts(list(dict.fromkeys([*(prompt.text for prompt in prompts), *negatives])))
    cuts = [cut_prompt(f"prompt {prompt.id!r}", prompt.text, prompt.words, kept) for prompt in prompts if prompt.text in kept]
    for prompt in prompts:
        if prompt.negative in kept:
            cuts.append(Cut(f"the negative prompt of {prompt.id!r}", kept[prompt.negative or ""]))
    if own in kept:
        cuts.append(Cut("the policy's negative prompt", kept[own]))
    if cuts:
        _TOLD.add(policy)
    encoder = policy.frozen_parts.get("text_encoder")
    name = f"the text encoder of {type(policy).__name__}" + (f" ({type(encoder).__name__})" if encoder is not None else "")
    report_cuts(cuts, name, len(prompts), cut_prompts, INSTEAD)


def warn_of_cut_batch(prompts: Sequence[Prompt], policy: VARPolicy) -> None:
    """Warn, once for a policy, of a batch that was not checked before training, with prompts that are cut off."""
    if policy not in _TOLD:
        check_cut_prompts(prompts, policy, "warn")
