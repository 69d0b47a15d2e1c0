"""A training step of `VARGRPO`, and what it refuses."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fresh import Fresh
from torch import Tensor

from tests.tabular_policy import TabularPolicy
from tests.tiny import PROMPTS, LeftBright, M, tiny_loader, tiny_module, tiny_policy, tiny_trainer, weights
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.grpo.arguments import NUM_CONTINUATIONS
from varrl_lightning.module import VARGRPO
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Prompt, Sampling, SamplingChanges, Score, Stage

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:You defined a `validation_step`")


def fitted(max_steps: int = 8, loader_size: int = 2, **options) -> Tensor:
    module = tiny_module(**options)
    tiny_trainer(max_steps=max_steps).fit(module, tiny_loader(batch_size=loader_size))
    return weights(module)


def test_training_moves_the_policy_and_nothing_else() -> None:
    policy = tiny_policy()
    before, tokenizer_before = weights(tiny_module(tiny_policy())), [p.clone() for p in policy.tokenizer.parameters()]
    module = tiny_module(policy, kl_coef=0.1)
    reference_before = [p.clone() for p in module.reference.parameters()]
    tiny_trainer(max_steps=4).fit(module, tiny_loader())
    assert not torch.equal(weights(module), before)
    for kept, now in zip(tokenizer_before, policy.tokenizer.parameters(), strict=True):
        assert torch.equal(kept, now)
    for kept, now in zip(reference_before, module.reference.parameters(), strict=True):
        assert torch.equal(kept, now)
    assert not any(name.startswith(("reference", "policy.tokenizer", "rewards")) for name in module.state_dict())


@pytest.mark.parametrize(
    "options", [{}, {"normalise": {"tokens": "batch"}, "kl_coef": 0.05, "score": "sampler"}, {"normalise": {"advantages": "batch"}}]
)
def test_one_or_four_micro_batches_give_the_same_weights(options: dict) -> None:
    """By SGD: Adam divides by the gradient's own size, so that one of 1e-9 moves a weight as far as its rounding error does."""
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9)}
    whole = fitted(**options, **sgd)
    assert not torch.equal(whole, weights(tiny_module()))
    cut = fitted(micro_batch_size=2, images_at_once=8, **options, **sgd)
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)


def test_the_cycle_is_three_prefix_stages_and_a_suffix() -> None:
    module = tiny_module()
    seen = []
    original = module.updater.update

    def spy(trained, parallel, rollout, *rest, **sizes):
        seen.append((rollout.stage.name, rollout.stage.start, rollout.stage.stop))
        return original(trained, parallel, rollout, *rest, **sizes)

    module.updater.update = spy  # type: ignore[method-assign]
    tiny_trainer(max_steps=5).fit(module, tiny_loader())
    assert seen == [("prefix", 0, M)] * 3 + [("suffix", M, 4)] + [("prefix", 0, M)]
    assert (module.rollouts_done, module.updates_done) == (5, 5)


def test_a_stage_leaves_the_parameters_of_other_scales_alone() -> None:
    """Each scale has its own exit; without weight decay a prefix stage must not move those of the suffix."""
    module = tiny_module(stages=[Stage(0, 2, 4, 2)], optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    exits = [e.weight.clone() for e in module.policy.transformer.exits]
    tiny_trainer(max_steps=1).fit(module, tiny_loader())
    moved = [not torch.equal(e.weight, was) for e, was in zip(module.policy.transformer.exits, exits, strict=True)]
    assert moved == [True] * 2 + [False] * 2


def test_the_two_sums_of_several_rewards_differ() -> None:
    class Top:
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            return images[:, :, :8].mean((1, 2, 3)) * 10

    reward = {"left": {"reward": LeftBright(), "weight": 1.0}, "top": {"reward": Top(), "weight": 0.5}}
    made = [fitted(reward=reward, combine=combine) for combine in ("weighted_sum", "standardised_sum", "gdpo")]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(made, 2))


def test_groups_without_variance_only_feel_the_kl() -> None:
    class Constant:
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            return torch.ones(len(images))

    start = weights(tiny_module())
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.5), "reward": Constant()}
    assert torch.equal(fitted(**sgd), start)
    assert not torch.equal(fitted(**sgd, kl_coef=1.0, reference=tiny_policy(seed=1)), start)


BESIDE: dict[str, Any] = {"stages": [Stage(0, 4, 4)]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 0}, r"m must be within \[1, 4\].*got 0"),
        ({"m": 5}, r"m must be within \[1, 4\].*got 5"),
        ({"m": "middle"}, "a resolution such as '256px', got 'middle'"),
        ({"group_size": 1}, "group_size must be at least 2.*got 1"),
        ({"num_continuations": -1}, "num_continuations .* at least 0, which scores drafts, got -1"),
        ({"num_continuations": 0, "alternation": ["suffix"]}, "num_continuations = 0 scores the drafts .* has no prefix"),
        (
            BESIDE | {"num_continuations": 0},
            "num_continuations = 0, which scores drafts, says nothing beside stages,.* 1:",
        ),
        (
            BESIDE | {"num_continuations": 4},
            "num_continuations = 4 says nothing .* at its default 2, or give",
        ),
        (BESIDE | {"group_size": 8}, "group_size = 8 says nothing beside stages, which have branches 4: leave group_size"),
        (BESIDE | {"suffix_starts": 2}, "suffix_starts = 2 says nothing beside stages, which have starts 1"),
        (BESIDE | {"first_scale": "shared"}, "first_scale = shared says nothing .* give that stage start 1 and starts 1"),
        (BESIDE | {"first_scale": "per_branch"}, "first_scale = per_branch says .* give that stage start 1 and starts 4"),
        ({"stages": [Stage(2, 4, 4, 0)]}, "ends with the last scale, where continuations is 1"),
        ({"eta": 0.0}, "eta must be > 0 and finite, got 0.0"),
        ({"eta": -1.0}, "eta must be > 0 and finite, got -1.0"),
        ({"alpha": float("nan")}, "alpha must be >= 0 and finite, got nan"),
        ({"alpha": -0.5}, "alpha must be >= 0 and finite, got -0.5"),
        ({"clip_low": 1.5}, r"clip_low must be in \[0, 1\]"),
        ({"kl_coef": -0.1}, "kl_coef must be >= 0 and finite, got -0.1"),
        ({"kl_coef": float("inf")}, "kl_coef must be >= 0 and finite, got inf"),
        ({"kl": {"old_coef": -0.1}}, r"kl.old_coef must be >= 0 and finite, got -0.1"),
        ({"mask": {"threshold": 1.0}}, r"mask.threshold must be in \[0, 1\), got 1.0"),
        ({"kl": {"estimator": "k4"}}, r"kl.estimator[^,]*exact, k1, k2, k3\. Got: k4"),
        ({"mask": {"missing": "one"}}, r"mask.missing[^,]*group_union, union_always, ones\. Got: one"),
        ({"mask": {"dilatoin": 1}}, "mask has no 'dilatoin'. Did you mean 'dilation'"),
        ({"mask": {"dilation": -1}}, "mask.dilation must be 0 or more pixels, got -1"),
        ({"mask": {"outside": 1.5}}, r"mask.outside must be in \[0, 1\], got 1.5"),
        ({"normalise": {"tokens": "constant", "constant": -1.0}}, "normalise.constant must be > 0, got -1.0"),
        ({"score": Score("guided", Sampling(top_k=4))}, "score.sampling is the module's own sampling"),
        ({"stages": [Stage(2, 4, 4, 2)]}, "ends with the last scale, where continuations is 1"),
        ({"stages": [Stage(0, 2, 4, 2, starts=2)]}, "starts with nothing drawn, where starts is 1"),
        ({"ratio": "bit"}, "this policy's tokens have no bits"),
        ({"normalise": {"tokens": "constant"}}, "normalise.constant goes with normalise.tokens 'constant'"),
        ({"alternation": ["prefix", "sufix"]}, "sufix"),
        ({"suffix_starts": 3}, "starts must divide the 4 branches, got 3"),
        ({"stages": [Stage(0, 5, 4)]}, "ends after the last of 4 scales"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, got 0"),
        ({"images_at_once": 0}, "images_at_once must be at least 1, got 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0, got 0.0"),
    ],
)
def test_values_out_of_range_fail_before_anything_runs(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_module(**options)


def test_beside_stages_stand_their_own_sizes_and_what_a_base_configuration_has() -> None:
    """As in `comparison_base.yaml`, where m and alternation are those of recipes that do not spell their stages out."""
    one, drafts = Stage(1, 4, 4), Stage(0, 2, 4, continuations=0)
    shared: dict[str, Any] = {"first_scale": "shared", "num_continuations": 1, "alternation": ["prefix"]}
    assert tiny_module(stages=[one], **shared).cycle == (one,)
    assert tiny_module(stages=[replace(one, starts=4)], first_scale="per_branch").cycle[0].starts == 4
    assert tiny_module(stages=[one, drafts], num_continuations=0).cycle == (one, drafts)
    assert inspect.signature(VARGRPO).parameters["num_continuations"].default == NUM_CONTINUATIONS


def test_an_unknown_choice_lists_the_known_ones(fresh: Fresh) -> None:
    """In a fresh process, where no type checker runs in front of the package's own check."""
    cases = {
        "score": ("models", "model, sampler, guided, corrected"),
        "ratio": ("tokens", "token, scale_mean, scale_sum, sequence_mean, bit"),
        "combine": ("sum", "weighted_sum, standardised_sum, gdpo"),
    }
    lines = ["from tests.tiny import tiny_module"]
    for name, (value, _) in cases.items():
        lines += ["try:", f"    tiny_module({name}={value!r})", "except ValueError as error:", "    print(error)"]
    said = fresh("\n".join(lines)).stdout.splitlines()
    assert said == [f"{name} must be one of {choices}, got {value!r}" for name, (value, choices) in cases.items()]


def test_m_at_the_last_scale_is_plain_grpo_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="m = 4 is the last scale: this is plain GRPO"):
        module = tiny_module(m=4)
    assert module.cycle == (Stage(0, 4, 4, name="all"),)


def test_a_setting_of_the_sampler_leaves_the_others() -> None:
    policy = tiny_policy()
    policy.default_sampling = Sampling(cfg=2.0, top_k=5, temperature=0.7)
    assert tiny_module(policy, sampling=SamplingChanges(top_k=3)).sampling == Sampling(cfg=2.0, top_k=3, temperature=0.7)
    assert tiny_module(policy, sampling=Sampling(top_k=3)).sampling == Sampling(top_k=3)
    assert tiny_module(policy, sampling=None).sampling == policy.default_sampling
    with pytest.raises(ValueError, match=r"sampling.temperature must be one number or one for each of the 4 scales, got 2"):
        tiny_module(policy, sampling=SamplingChanges(temperature=(1.0, 2.0)))


class TwoSizes(TabularPolicy):
    """Draws twice as many scales for a larger image."""

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        return Schedule(((1, 1), (1, 2), (1, 3), (1, 4))) if size == (64, 64) else super().schedule(size)


def test_images_of_more_scales_than_the_stages_count_are_refused() -> None:
    module = VARGRPO(TwoSizes(((1, 1), (1, 2))), reward=LeftBright(), mask_source="full", m=1)
    prompts = [Prompt("small"), Prompt("large", size=(64, 64))]
    with pytest.raises(ValueError, match=r"prompt 'large' asks for \(64, 64\) pixels, which have 4 scales, but"):
        module.check_prompts(prompts)
    with pytest.raises(ValueError, match="prompt 'large'"):
        module.training_step(prompts[1:], 0)


def test_warm_up_is_stepped_once_per_rollout() -> None:
    module = tiny_module(
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=9),
        updates_per_rollout=2,
    )
    trainer = tiny_trainer(max_steps=6)
    trainer.fit(module, tiny_loader())
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.1 + 0.9 * 3 / 9)


def test_bf16_autocast_trains_and_leaves_the_weights_in_fp32() -> None:
    module = tiny_module(kl_coef=0.01, score="sampler")
    trainer = tiny_trainer(max_steps=4, precision="bf16-mixed")
    trainer.fit(module, tiny_loader())
    assert weights(module).dtype == torch.float32
    assert torch.isfinite(weights(module)).all()


def test_bf16_weights_train_and_stay_bf16() -> None:
    module = tiny_module(kl_coef=0.01, score="sampler", optimizer=lambda p: torch.optim.AdamW(p, lr=0.1))
    before = weights(module).clone()
    with pytest.warns(UserWarning, match=r"trained weights are bfloat16: a step that changes a weight by less than its last digit"):
        tiny_trainer(max_steps=4, precision="bf16-true").fit(module, tiny_loader())
    assert weights(module).dtype == torch.bfloat16
    assert {p.dtype for p in module.reference.parameters()} == {torch.bfloat16}
    assert torch.isfinite(weights(module)).all()
    assert (weights(module) != before.bfloat16()).any()


def test_the_same_run_twice_is_the_same_run_and_another_seed_is_not() -> None:
    assert torch.equal(fitted(max_steps=4), fitted(max_steps=4))
    assert not torch.equal(fitted(max_steps=4), fitted(max_steps=4, seed=1))


@pytest.mark.parametrize(
    "batch",
    [
        PROMPTS[:2],
        [p.text for p in PROMPTS[:2]],
        {"text": [p.text for p in PROMPTS[:2]]},
        {"prompt": [p.text for p in PROMPTS[:2]], "index": [0, 1]},
        ([p.text for p in PROMPTS[:2]], torch.zeros(2)),
        [{"text": p.text} for p in PROMPTS[:2]],
    ],
)
def test_foreign_batches_are_read_as_prompts(batch: object) -> None:
    images = tiny_module()(batch)
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images, tiny_module()(PROMPTS[:2]))


def test_a_batch_that_holds_no_prompts_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cannot read a batch of Tensor .* as prompts"):
        tiny_module()(torch.zeros(2))


def test_logged_names(tmp_path) -> None:
    module = tiny_module(kl_coef=0.01)
    trainer = tiny_trainer(max_steps=1)
    trainer.fit(module, tiny_loader())
    found = set(trainer.callback_metrics)
    parts = ["reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "num_tokens", "step_time", "grad_norm", "loss", "lr"]
    parts += ["vmr_bonus", "mask_coverage", "sampler_gap", "images_per_second", "tokens_per_second"]
    parts += [f"clip_ratio/{part}" for part in ("low_mean", "low_min", "high_mean", "high_max", "region_mean")]
    parts += [f"seconds/{part}" for part in ("rollout", "reward", "update")]
    parts += [f"variance/{part}" for part in ("within", "between", "signal")]
    parts += ["rewards/LeftBright/mean", "rewards/LeftBright/std"]
    per_scale = ("kl", "entropy", "k_share", "mask_coverage", "clip_ratio/low_mean", "sampler_gap")
    scales = range(1, M + 1)
    expected = {*parts, *(f"prefix/{part}" for part in parts), *(f"{name}/scale_{t}" for name in per_scale for t in scales)}
    assert not expected - found
    shares = [float(trainer.callback_metrics[f"k_share/scale_{t}"]) for t in scales]
    assert sum(shares) == pytest.approx(1)


def test_a_prompt_that_comes_twice_in_a_batch_is_drawn_twice() -> None:
    first, second, other = tiny_module()(['"STONE"', '"STONE"', '"RIVER"'])
    assert (first - second).abs().max() > 0.05
    torch.testing.assert_close(other, tiny_module()(['"RIVER"'])[0], atol=1e-3, rtol=0)


def test_columns_of_a_default_collate_are_read() -> None:
    batch = {"prompt": ['"STONE"', '"RIVER"'], "id": torch.tensor([3, 4]), "label": torch.tensor([0, 1]), "epoch": 3}
    assert [(p.text, p.id, p.label) for p in as_prompts(batch)] == [('"STONE"', "3", 0), ('"RIVER"', "4", 1)]


def test_rows_of_a_stage_hold_no_numbers_of_another() -> None:
    rows: list[dict[str, float]] = []
    module = tiny_module(alternation=["prefix", "suffix"])
    module.log_dict = lambda metrics, **_: rows.append(dict(metrics))  # type: ignore[method-assign, assignment]
    tiny_trainer(max_steps=3).fit(module, tiny_loader())
    _, first_prefix, _, suffix, _, prefix = rows
    assert math.isfinite(first_prefix["prefix/entropy"])
    assert math.isnan(suffix["prefix/entropy"])
    assert math.isnan(prefix["suffix/entropy"])
    assert math.isnan(prefix["entropy/scale_4"])


def test_the_learning_rate_that_is_logged_is_the_one_that_was_used() -> None:
    module = tiny_module(lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5))
    trainer = tiny_trainer(max_steps=1)
    trainer.fit(module, tiny_loader())
    assert float(trainer.callback_metrics["lr"]) == pytest.approx(1e-3)


def test_evaluations_of_several_sizes_are_merged() -> None:
    small, large = (
        Evaluation(PROMPTS[:1], torch.zeros(1, 3, 8, side), torch.ones(1), {}, [["STONE"]]).without_images() for side in (8, 16)
    )
    assert Evaluation.merge([small, large]).metrics() == {"reward": 1.0, "word_accuracy": 1.0, "ned": pytest.approx(1.0)}


@pytest.mark.parametrize("gradient", ["flows", "detached"])
def test_a_detached_unconditional_half_gives_the_head_no_gradient(gradient: str) -> None:
    policy, sampling = tiny_policy(), Sampling(cfg=3.0)
    cond = policy.encode_prompts(PROMPTS[:2])
    tokens = policy.sample(policy.begin(cond, sampling, torch.arange(2)), 2).tokens
    score = Score("guided", sampling, gradient)  # type: ignore[arg-type]
    torch.cat(policy(tokens, cond, 0, 2, score=score).log_prob, dim=1).sum().backward()
    found = policy.transformer.head.weight.grad.clone()

    policy.zero_grad()
    total = torch.zeros(())
    schedule = policy.schedule()
    conditional, unconditional = (policy.span_features(x, tokens, 0, 2, schedule) for x in (cond.tensors, cond.unconditional))
    for c, u, drawn in zip(conditional, unconditional, tokens, strict=True):
        u_logits = policy.logits(u.detach() if gradient == "detached" else u)
        u_logits = u_logits.detach() if gradient == "detached" else u_logits
        logits = 3.0 * policy.logits(c) - 2.0 * u_logits
        total = total + logits.log_softmax(-1).gather(-1, drawn[..., None]).sum()
    total.backward()
    torch.testing.assert_close(found, policy.transformer.head.weight.grad, atol=1e-5, rtol=1e-4)
