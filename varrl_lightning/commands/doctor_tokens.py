"""Does the policy predict the tokens of its tokenizer? What a wrong but intact VAE, which reconstructs perfectly, cannot pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.known_picture import KnownPicture
from varrl_lightning.policies.state import Cond
from varrl_lightning.types import Prompt

KNOWN = 0.02
"""Share of ln V (ln 2 for bits) by which tokens must be likelier than chance; the embedded model's are by .24 of it."""
ERRORS = 3.0
"""Standard errors of the mean by which they must be likelier, too: of a few tokens some are likely by chance."""
UNIFORM = 0.97
"""Share of ln V from which on the mean entropy is that of weights that were never trained."""
TOKENS_AT_ONCE = 1024
"""Tokens whose logits exist at one time."""
ADVICE = (
    "The policy does not predict this tokenizer's tokens: wrong VAE, or untrained weights. A wrong VAE that is intact reconstructs "
    "pictures perfectly, and all that is sampled through it is noise. Give the VAE that the transformer was trained with. Where a "
    "model knows no pictures like {picture}, give one that it knows: --picture FILE --caption TEXT"
)


@dataclass(frozen=True)
class Prediction:
    """What a policy makes of the tokens of a picture by teacher forcing, in nats; a token is a bit for a bitwise family.

    Args:
        log_prob: of each token.
        permuted: of what the same tokens would be if the codebook were in another order.
        entropy: of the policy at each token.
        uniform: ln V, ln 2 for bits.
    """

    log_prob: Float[Tensor, " L"]
    permuted: Float[Tensor, " L"]
    entropy: Float[Tensor, " L"]
    uniform: float

    @property
    def known(self) -> bool:
        """Whether the tokens are likelier than chance, and than in another order of the codebook."""
        chance = max(-self.uniform, float(self.permuted.mean()))
        error = float(self.log_prob.std(correction=0)) / math.sqrt(len(self.log_prob))
        return float(self.log_prob.mean()) - chance > max(KNOWN * self.uniform, ERRORS * error)


def tokens_are_predicted(policy: VARPolicy, picture: KnownPicture, prompts: Sequence[Prompt], trained: bool) -> Finding:
    """Check that the policy finds the tokens of a picture that it should know likelier than chance.

    Args:
        picture: of the kind that the policy was trained on.
        prompts: the run's; the first one stands in for a caption that the policy cannot read.
        trained: whether the configuration loads trained weights; a policy that is made anew knows no picture.
    """
    if not hasattr(getattr(policy, "tokenizer", None), "encode") and type(policy).encode is VARPolicy.encode:
        advice = "Define `encode(images, schedule)` of the tokenizer or of the policy, or compare pictures of it by eye."
        return Finding("tokens", True, "not checked: the policy has no way to turn a picture into tokens", advice)
    cond, asked = _condition(policy, picture.prompt, prompts)
    found = predict(policy, policy.encode(picture.pixels(cond.schedule.image_size).to(policy.device), cond.schedule), cond)
    unit = "token" if policy.bits is None else "bit"
    figure = (
        f"mean log-prob per {unit} of {picture.path.name}{asked}: {found.log_prob.mean():.3f} "
        f"(chance {-found.uniform:.3f}, the same tokens under a permuted codebook {found.permuted.mean():.3f})"
    )
    if found.known:
        return Finding("tokens", True, figure)
    untrained = not trained and float(found.entropy.mean()) > UNIFORM * found.uniform
    return Finding("tokens", untrained, figure, ADVICE.format(picture=picture.path.name))


@torch.no_grad()
def predict(policy: VARPolicy, tokens: list[Tensor], cond: Cond) -> Prediction:
    """Teacher-force tokens through the plain policy, without guidance.

    Args:
        tokens: of all scales, one row.
        cond: of that row.
    """
    order = _other_order(policy.bits or policy.vocab_size).to(policy.device)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    features = policy.span_features(cond.tensors, tokens, 0, len(cond.schedule), cond.schedule)
    for scale, wanted in zip(features, tokens, strict=True):
        other = order[wanted] if policy.bits is None else wanted[..., order]
        parts = (x[0].split(TOKENS_AT_ONCE) for x in (scale, wanted, other))
        for feature, token, moved in zip(*parts, strict=True):
            logits = policy.logits(feature).float().log_softmax(dim=-1)
            entropy = -(logits.exp() * logits).sum(dim=-1)
            chosen, instead = (logits.gather(-1, index[..., None]).squeeze(-1) for index in (token, moved))
            columns.append((chosen, instead, entropy))
    log_prob, permuted, entropy = (torch.cat([x.flatten() for x in column]) for column in zip(*columns, strict=True))
    return Prediction(log_prob, permuted, entropy, math.log(policy.vocab_size))


def _other_order(count: int) -> Int[Tensor, " V"]:
    """A random order in which nothing keeps its place: of the entries of a codebook, or of the bits of a token."""
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    order = torch.empty_like(drawn)
    order[drawn] = drawn.roll(1)
    return order


def loads_weights(spec: Any) -> bool:
    """Whether a configuration's policy, or one inside of it, is built by a `from_pretrained`."""
    arguments = vars(spec).get("init_args") if hasattr(spec, "class_path") else None
    inside = vars(arguments).values() if arguments is not None else ()
    return str(getattr(spec, "class_path", "")).endswith(".from_pretrained") or any(map(loads_weights, inside))


def _condition(policy: VARPolicy, caption: Prompt, prompts: Sequence[Prompt]) -> tuple[Cond, str]:
    """The encoded caption, else the run's first prompt, and what to say of it: some policies read listed texts or classes only."""
    try:
        return policy.encode_prompts([caption]), ""
    except (ValueError, LookupError):
        prompt = prompts[0]
        return policy.encode_prompts([prompt]), f" under the prompt {prompt.id!r}, since the policy cannot read its caption"
