"""Groups of images for rewards that compare them, and the scores of those groups, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from varrl_lightning.types import Prompt, Scores, Stage


def equal_prompts(prompts: Sequence[Prompt]) -> list[range]:
    """The images of each prompt, where those of one prompt follow each other."""
    runs = [list(run) for _, run in groupby(range(len(prompts)), key=lambda i: prompts[i])]
    return [range(run[0], run[-1] + 1) for run in runs]


def single_images(n: int) -> list[range]:
    """The groups of an evaluation, which samples one image per prompt: each of n images is one."""
    return [range(i, i + 1) for i in range(n)]


def whole_groups(branches: Sequence[int], stage: Stage) -> dict[int, range]:
    """The images of each group all of whose branches are there, by the number of its prompt.

    Args:
        branches: numbers of branches, counted prompt by prompt; one that occurs again does not count.
    """
    A, K = stage.branches, stage.images_per_branch
    first = {branch: place for place, branch in reversed(list(enumerate(branches)))}
    found = {}
    for prompt in sorted({branch // A for branch in branches}):
        places = [first.get(branch) for branch in range(prompt * A, (prompt + 1) * A)]
        start = places[0]
        if start is not None and places == list(range(start, start + A)):
            found[prompt] = range(start * K, (start + A) * K)
    return found


@dataclass(frozen=True)
class PartialScores:
    """The scores of a rollout's images, as far as one process has them.

    Args:
        apart: scores of the images, from each reward that scores them one by one.
        groups: scores of the A * max(K, 1) images of a prompt, from each reward that compares them, by the number of the prompt.
        drafts: the same of the drafts of these branches, where the stage scores them beside.
    """

    apart: dict[str, Scores]
    groups: Mapping[int, Mapping[str, Scores]] = field(default_factory=dict)
    drafts: PartialScores | None = None

    def of_images(self, names: Iterable[str], branches: Sequence[int], stage: Stage) -> dict[str, Scores]:
        """The scores of each reward for the images of these branches.

        Args:
            names: the rewards, in their order.

        Raises:
            ValueError: when the scores of a group are not known, since some of its branches were sampled elsewhere.
        """
        A, K = stage.branches, stage.images_per_branch
        needed = sorted({branch // A for branch in branches})
        rows = [(needed.index(branch // A) * A + branch % A) * K + k for branch in branches for k in range(K)]
        scores = {}
        for name in names:
            if name in self.apart:
                scores[name] = self.apart[name]
                continue
            if missing := [prompt for prompt in needed if prompt not in self.groups]:
                raise ValueError(
                    f"the reward {name!r} compares the images of a group (whole_groups), but of the groups {missing} only a part "
                    f"of the {A} branches was sampled; sample all branches of a prompt together"
                )
            scores[name] = Scores.join([self.groups[prompt][name] for prompt in needed]).rows(rows)
        return scores
