"""What a policy says of the tokens of some rows."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class LogProbs:
    """Per-token quantities of scales `[start, stop)`, lists over scales of (rows, n_t), in nats.

    Args:
        log_prob: log pi(token), the sum over bits for a bitwise family.
        entropy: entropy of pi at each token.
        kl: exact categorical KL(pi || reference) at each token, when a reference was given.
        reference_log_prob: log reference(token), when a reference was given.
        bit_log_prob: (rows, n_t, bits) for a bitwise family.
        support: the tokens over which a truncated distribution is normalised, 8 in a byte; None when it is not truncated. Later
            passes on the same rollout take theirs from the first.
    """

    log_prob: list[Float[Tensor, "R _n"]]
    entropy: list[Float[Tensor, "R _n"]]
    kl: list[Float[Tensor, "R _n"]] | None = None
    reference_log_prob: list[Float[Tensor, "R _n"]] | None = None
    bit_log_prob: list[Float[Tensor, "R _n D"]] | None = None
    support: list[UInt8[Tensor, "R _n bytes"]] | None = None
