"""What the branches and continuations of a group share of their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from varrl_lightning.configuration.specs import OptionGroup
from varrl_lightning.types import Stage, check_choices


@dataclass(frozen=True)
class NoiseOptions(OptionGroup):
    """Whether the images of a group share noise, so that less of it is left when they are compared.

    Each image by itself has the policy's own distribution, exactly, whatever is chosen, and R_i grad log pi(i) of a branch is
    unbiased; only the images' joint distribution changes. Images of validation and test share nothing.

    A centred advantage compares branch i with the returns R_j of the others, which adds -E[R_j grad log pi(i)]. That is 0 where the
    tokens of i are independent of R_j; without a divisor the expected gradient is then (A-1)/A of the true one, G.

    `continuations: common` keeps it so: what R_j shares with R_i is noise that no token of branch i depends on.

    `branches: stratified` does not: the tokens of two branches repel each other. With one trained token the expected gradient is

        (A-1)/A G + B/A,    B = Cov(mean of R in a stratum, mean of grad log pi in it),

    which for a token of two values is a multiple of G, by a factor from (A-1)/A to 1: the mean of an even group is a better
    baseline. With several tokens, B is that of the main effects of each, and what n tokens do together adds up to 1/(A-1)^(n-1)
    as much. So the bias is of the order 1/A, and it is not the same for all tokens.

    Args:
        continuations: `independent`, or `common` random numbers: the k-th continuations of all branches of a prompt are sampled
            with the same noise. It acts in stages that have continuations, K >= 1; `VARGRPO` warns where there is none.
            `variance/...`, which takes them for independent, is not logged.
        branches: `independent`, or `stratified`: for each token of the trained scales (each bit, where tokens have bits) every A-th
            of [0, 1) holds the uniform number of one branch, in a random order. Where a prompt has several starts, the branches of
            each are stratified among themselves, since they alone sample from one distribution; with `first_scale: per_branch`,
            or `suffix_starts` equal to `group_size`, nothing is left to stratify, and `VARGRPO` warns.

    Raises:
        ValueError: on another choice.
    """

    continuations: Literal["independent", "common"] = "independent"
    branches: Literal["independent", "stratified"] = "independent"

    def __post_init__(self) -> None:
        check_choices(self)

    def idle(self, stages: Sequence[Stage], T: int) -> list[str]:
        """A warning for each option that changes nothing in the stages.

        Args:
            stages: of which images are sampled.
            T: number of scales.
        """
        different = list(dict.fromkeys(stages))
        found = []
        if self.continuations == "common" and not any(stage.continuations and stage.stop < T for stage in different):
            found.append(
                "noise.continuations: common does nothing: no stage has continuations (K = 0, or all end with the last scale). "
                "Set num_continuations to 1 or more with a prefix, or leave noise.continuations out"
            )
        alone = [stage for stage in different if stage.starts == stage.branches]
        if self.branches == "stratified" and alone:
            names = ", ".join(dict.fromkeys(stage.name for stage in alone))
            found.append(
                f"noise.branches: stratified does nothing in {names}: each of the branches has its own start (first_scale: "
                "per_branch, or suffix_starts equal to group_size), and only branches of one start are stratified. Let them share "
                "one, or leave noise.branches out"
            )
        return found

    def check_keys(self, keys: Tensor | torch.Generator) -> None:
        """Check that images can share noise.

        Raises:
            ValueError: where noise is shared, but comes from a generator.
        """
        if isinstance(keys, torch.Generator) and self != NoiseOptions():
            raise ValueError(
                f"noise.continuations: {self.continuations} with noise.branches: {self.branches} needs noise keys, one a prompt, "
                "as prompt_keys makes them: a torch.Generator's numbers belong to no row. Give keys, or leave both independent"
            )
