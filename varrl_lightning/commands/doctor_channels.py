"""Does the decoder give a picture back as it was? Swapped channels and inverted or badly scaled pixels show here."""

from __future__ import annotations

from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.known_picture import KnownPicture

GIVEN_BACK = 0.8
"""Correlation of pixels from which a picture counts as given back; the embedded model has .99."""
HALF = 0.5
"""A fault is a form of the picture with at most this share of the squared error."""
ADVICE = (
    "The decoded picture is the known one {}. Policies and rewards take RGB in [0, 1]: mend `decode_latent`, or what the pictures "
    "pass through after it."
)


@torch.no_grad()
def channels_are_kept(policy: VARPolicy, picture: KnownPicture) -> Finding:
    """Check that a known picture, turned into tokens and back, has its channels in order and its pixels in [0, 1]."""
    if not hasattr(getattr(policy, "tokenizer", None), "encode") and type(policy).encode is VARPolicy.encode:
        return Finding("channels", True, "not checked: the policy has no way to turn a picture into tokens")
    schedule = policy.schedule()
    wanted = picture.pixels(schedule.image_size).to(policy.device)
    found = policy.decode(policy.encode(wanted, schedule), schedule).float()
    low, high = float(found.min()), float(found.max())
    errors = {name: float((form - wanted).square().mean()) for name, form in _forms(found).items()}
    best = min(errors, key=lambda name: errors[name])
    likeness = _correlation(_forms(found)[best], wanted)
    figure = f"{picture.path.name} is given back with a correlation of {_correlation(found, wanted):.2f}"
    if best and errors[best] < HALF * errors[""] and likeness > GIVEN_BACK:
        return Finding("channels", False, f"{figure}, and of {likeness:.2f} {best}", ADVICE.format(best))
    if low < -0.5 or high > 1.5:
        said = f"with pixels from {low:.1f} to {high:.1f}"
        return Finding("channels", False, f"{figure}, {said}", ADVICE.format(said))
    return Finding("channels", True, figure if likeness > GIVEN_BACK else f"{figure}: too little to tell")


def _forms(images: Float[Tensor, "R 3 H W"]) -> dict[str, Float[Tensor, "R 3 H W"]]:
    """The images as they are, with channels in other orders, and otherwise wrong, by what is said of it."""
    orders = {"RGB"[a] + "RGB"[b] + "RGB"[c]: [a, b, c] for a, b, c in permutations(range(3))}
    forms = {f"with swapped channels, {name}": images[:, order] for name, order in orders.items() if name != "RGB"}
    wrong = {"with light and dark exchanged": 1 - images, "in [-1, 1]": (images + 1) / 2, "upside down": images.flip(2)}
    return {"": images} | forms | wrong | {"as a mirror shows it": images.flip(3)}


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].nan_to_num())
