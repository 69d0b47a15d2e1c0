"""HPSv3, a human preference score, as a reward."""

from __future__ import annotations

from varrl_hpsv3.inputs import without_special_tokens
from varrl_hpsv3.model import HPSv3Error
from varrl_hpsv3.reward import HPSv3

__all__ = ["HPSv3", "HPSv3Error", "without_special_tokens"]
