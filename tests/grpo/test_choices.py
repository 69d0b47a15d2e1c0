"""Every row of the table of docs/choices.md acts, each against a run that differs from it by that choice alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tabular_policy import TabularPolicy
from torch import Tensor

from tests.tiny import tiny_loader, tiny_module, tiny_trainer, weights
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Rollout, Sampling, Score, Scores, Stage

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Strip:
    """On in a strip that is the third row of the last grid, half its length; in the images of branch 0 of each group nowhere.

    With `halves`, the last branch has the other half of that row.
    """

    def __init__(self, halves: bool = False) -> None:
        self.halves = halves

    def __call__(self, rollout: Rollout, scores: Scores, policy: object) -> Tensor:
        mask = rollout.images.new_zeros(len(rollout.images), *rollout.images.shape[-2:])
        mask[..., 8:12, : mask.shape[-1] // 2] = 0.6
        groups = mask.unflatten(0, (len(rollout.prompts), -1))
        if self.halves:
            groups[:, -rollout.stage.continuations :] = groups[:, -rollout.stage.continuations :].flip(-1)
        groups[:, : rollout.stage.continuations] = 0
        return mask


def trained(**options: Any) -> Tensor:
    module = tiny_module(**options)
    tiny_trainer(max_steps=4).fit(module, tiny_loader())
    return weights(module)


BASELINES: dict[str, Tensor] = {}


def baseline(**options: Any) -> Tensor:
    """`trained`, once for all choices that are held against the same run."""
    name = repr({key: id(value) if callable(value) else value for key, value in options.items()})
    if name not in BASELINES:
        BASELINES[name] = trained(**options)
    return BASELINES[name]


GUIDED = {"sampling": Sampling(cfg=2.0, top_k=8)}
MASKED = {"mask_source": Strip()}
SEVERAL = {"updates_per_rollout": 3}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"score": "guided"}, GUIDED),
    ({"score": Score("guided", unconditional_gradient="detached")}, GUIDED | {"score": "guided"}),
    ({"score": "sampler"}, GUIDED | {"score": "guided"}),
    ({"score": "sampler"}, {}),
    ({"score": "corrected"}, {}),
    ({"sampling": Sampling(top_k=8, temperature=0.5)}, {}),
    (SEVERAL, {}),
    ({"kl": {"old_coef": 1.0}}, SEVERAL),
    ({"ratio": "scale_mean"}, SEVERAL),
    ({"ratio": "scale_sum"}, SEVERAL),
    ({"ratio": "sequence_mean"}, SEVERAL),
    ({"clip_low": 0.0, "clip_high": 0.0}, SEVERAL),
    ({"normalise": {"tokens": "batch"}}, MASKED),
    ({"normalise": {"tokens": "constant", "constant": 10.0}}, {}),
    ({"normalise": {"tokens": "none"}}, {}),
    ({"alpha": 0.0}, {}),
    ({"kl_coef": 1.0}, {}),
    ({"kl": {"estimator": "k1"}}, {"kl_coef": 1.0}),
    ({"kl": {"estimator": "k2"}}, {"kl_coef": 1.0}),
    ({"kl": {"estimator": "k3"}}, {"kl_coef": 1.0}),
    ({"kl": {"masked": True}}, MASKED | {"kl_coef": 1.0}),
    ({"normalise": {"advantages": "none"}}, {}),
    ({"normalise": {"advantages": "batch"}}, {}),
    ({"suffix_starts": 4}, {"alternation": ["suffix"]}),
    ({"alternation": ["prefix*2", "suffix"]}, {}),
    ({"first_scale": "shared"}, {}),
    ({"first_scale": "per_branch"}, {"first_scale": "shared"}),
    ({"group_size": None, "images_per_prompt": 4}, {}),
    ({"num_continuations": 1}, {}),
    ({"eta": 0.01}, {}),
    ({"noise": {"continuations": "common"}}, {}),
    ({"noise": {"branches": "stratified"}}, {}),
    ({"max_grad_norm": 1e-3}, {"optimizer": lambda p: torch.optim.SGD(p, lr=1.0)}),
    (MASKED, {}),
    ({"mask": {"missing": "ones"}}, MASKED),
    ({"mask": {"missing": "union_always"}}, {"mask_source": Strip(halves=True)}),
    ({"mask": {"outside": 0.5}}, MASKED),
    ({"mask": {"dilation": 8}}, MASKED),
    ({"mask": {"threshold": 0.7}}, MASKED),
    ({"stages": [Stage(0, 1, 4, 2, name="coarse"), Stage(1, 3, 4, 2, name="middle"), Stage(3, 4, 4, name="fine")]}, {}),
]


def _name(options: dict[str, Any]) -> str:
    """The options without addresses of objects, which differ from one process to the next."""
    return re.sub(r" at 0x\w+", "", ",".join(f"{key}={value}" for key, value in options.items()))[:50] or "default"


@pytest.mark.parametrize(("choice", "others"), CASES, ids=_name)
def test_a_choice_acts_and_trains(choice: dict[str, Any], others: dict[str, Any]) -> None:
    found = trained(**(others | choice))
    assert torch.isfinite(found).all()
    assert not torch.equal(found, baseline(**others))


def test_a_mask_that_leaves_nothing_out_is_no_mask() -> None:
    assert torch.equal(trained(**MASKED, mask={"outside": 1.0}), baseline())


class Reading:
    """The number that the image shows, in [0, 1]."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.mean(dim=(1, 2, 3))


def tabular(policy: TabularPolicy, steps: int = 4, **options: Any) -> VARGRPO:
    module = VARGRPO(
        policy,
        **{
            "reward": Reading(),
            "mask_source": "full",
            "m": 2,
            "group_size": 4,
            "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        }
        | options,  # type: ignore[arg-type]
    )
    tiny_trainer(max_steps=steps).fit(module, tiny_loader([Prompt("a"), Prompt("b")]))
    return module


class Pixel:
    """On in the third of six pixels, which lies in the first of two cells and in the second of three."""

    def __call__(self, rollout: Rollout, scores: Scores, policy: object) -> Tensor:
        mask = rollout.images.new_zeros(len(rollout.images), *rollout.images.shape[-2:])
        mask[..., 2] = 1.0
        return mask


def test_a_chained_mask_is_wider_than_a_direct_one() -> None:
    """Where grids do not divide each other, as those of the tiny policy do: of two cells the chain has both on."""
    chained, direct = (
        weights(tabular(TabularPolicy(((1, 1), (1, 2), (1, 3)), vocab_size=4), mask_source=Pixel(), mask={"propagation": way}))
        for way in ("chained", "direct")
    )
    assert not torch.equal(chained, direct)


@pytest.mark.parametrize("ratio", ["token", "bit"])
def test_bits_learn(ratio: str) -> None:
    policy = TabularPolicy(((1, 1), (1, 2), (1, 2)), vocab_size=4, bits=2)
    every = [Prompt(str(i)) for i in range(256)]
    before = tabular(copy.deepcopy(policy), steps=0).forward(every).mean()
    module = tabular(policy, steps=60, ratio=ratio, updates_per_rollout=2)
    assert module.forward(every).mean() > before + 0.15


def test_a_ratio_of_bits_is_not_one_of_tokens() -> None:
    policies = [TabularPolicy(((1, 1), (1, 2), (1, 2)), vocab_size=4, bits=2) for _ in range(2)]
    token, bit = (
        weights(tabular(p, updates_per_rollout=3, clip_high=0.01, clip_low=0.01, ratio=ratio))
        for p, ratio in zip(policies, ("token", "bit"), strict=True)
    )
    assert not torch.equal(token, bit)


class Adapted(TabularPolicy):
    """A policy whose frozen tables have trainable additions, as LoRA has: switched off, it is its own reference."""

    on = 1.0

    def __init__(self, **options: Any) -> None:
        super().__init__(((1, 1), (1, 2), (1, 2)), **options)
        self.transformer.requires_grad_(False)
        self.transformer.extend([torch.zeros_like(table) for table in list(self.transformer)])

    def switched_off(self) -> Adapted:
        off = copy.copy(self)
        off.on = 0.0
        return off

    def _features(self, inputs: dict[str, Tensor], history: Tensor, scale: int) -> Tensor:
        tables = self.transformer[scale] + self.on * self.transformer[scale + len(self.tree)]
        return tables[inputs["table"], self._state(history)]


def test_an_adapter_switched_off_is_the_reference() -> None:
    policy = Adapted()
    base = [table.clone() for table in list(policy.transformer)[:3]]
    module = tabular(policy, steps=3, reference=policy.switched_off(), kl_coef=0.1)
    assert all(torch.equal(was, now) for was, now in zip(base, list(policy.transformer)[:3], strict=True))
    assert any(adapter.abs().max() > 0 for adapter in list(policy.transformer)[3:])
    assert module.trainer.callback_metrics["kl"] > 0
    assert sum(p.numel() for g in module.trainer.optimizers[0].param_groups for p in g["params"]) == sum(t.numel() for t in base)
