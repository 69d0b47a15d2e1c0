"""Can the policy sample the run's prompts, and the rewards score them? Are they different from each other?"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence

from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.data import OverlapError, PromptDataModule
from varrl_lightning.errors import listed
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt
from varrl_lightning.types.normal_form import normal_form


def prompts_are_fit(model: VARGRPO, data: PromptDataModule) -> Finding:
    """Check the prompts as `fit` does before training, and that none of them is in the file twice; the data are ready after it.

    Where training shares prompts with validation or test, they are read all the same, so that other checks can go on.
    """
    wrong: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _read(data, wrong)
        if "train" in data.prompts:
            every = [prompt for of_file in data.prompts.values() for prompt in of_file]
            _tried(lambda: model.check_prompts(every, data.evaluated), wrong)
            _tried(lambda: model.rewards.check_training_prompts(data.prompts["train"]), wrong)
        elif not wrong:
            wrong.append("There are no training prompts: set data.train to a file of prompts.")
    remarks = list(dict.fromkeys(str(x.message) for x in told if issubclass(x.category, UserWarning)))
    train = data.prompts.get("train", [])
    again = Counter(_asked(prompt) for prompt in train)
    repeated = [asked[0] for asked, count in again.items() if count > 1]
    if repeated:
        remarks.append(_repeated(data, train, repeated))
    counts = ", ".join(f"{len(prompts)} of {name}" for name, prompts in data.prompts.items()) or "none could be read"
    figure = f"prompts: {counts}; " + (f"{len(repeated)} of training are repeated" if repeated else "all of training differ")
    return Finding("prompts", not wrong, figure, "\n".join([*wrong, *remarks]))


def _read(data: PromptDataModule, wrong: list[str]) -> None:
    try:
        data.setup("fit")
    except OverlapError as error:
        wrong.append(str(error))
        data.overlap = "ignore"
        _tried(lambda: data.setup("fit"), wrong)
    except (ValueError, OSError) as error:
        wrong.append(str(error))


def _tried(check: Callable[[], None], wrong: list[str]) -> None:
    try:
        check()
    except (ValueError, OSError) as error:
        wrong.append(str(error))


def _asked(prompt: Prompt) -> tuple[str, object, object]:
    return normal_form(prompt.text), prompt.size, prompt.label


def _repeated(data: PromptDataModule, train: Sequence[Prompt], repeated: Sequence[str]) -> str:
    """What is said of prompts that a file has more than once."""
    batches = [] if data.batch_size > len(train) else data.train_dataloader().epoch(0)
    twice = sum(len({_asked(prompt) for prompt in batch}) < len(batch) for batch in batches)
    return (
        f"{len(repeated)} training prompts are duplicated: {listed(repeated, 4)}. In {twice} of {len(batches)} batches of the "
        "first pass two groups have the same prompt, so that it counts twice. Remove the copies, unless they are a weight."
    )
