"""The gradients that are compared are those of training, scale by scale and whole; variants see the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny import PROMPTS, M, tiny_module, tiny_policy, tiny_trainer, untrained_lettering
from torch import Tensor
from torch.utils.data import DataLoader

from tests.tiny import mean_cosine
from varrl_lightning.callbacks.gradient_agreement import agreement_meter, described_variants
from varrl_lightning.gradient_agreement.measured import Measured
from varrl_lightning.gradient_agreement.meter import AgreementMeter, independent_batches
from varrl_lightning.gradient_agreement.variants import own_stages, read_variants
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

BATCHES = [PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]]


class Alike:
    """A reward without any variance."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.ones(len(images))


class Gradients(Callback):
    """Keeps the gradients of a training at the noise of a measurement, in steps that change nothing."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.counters.rollouts_done = -1 - batch_idx

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.found.append(torch.cat([p.grad.flatten().clone() for p in pl_module.policy.parameters()]))


def of_training(**options: Any) -> list[Tensor]:
    """Gradients of the three batches, by `training_step` itself."""
    optimizer: Any = lambda parameters: torch.optim.SGD(parameters, lr=0.0)  # noqa: E731
    module = tiny_module(optimizer=optimizer, max_grad_norm=None, **options)
    kept = Gradients()
    loader: Any = DataLoader(BATCHES, batch_size=None, collate_fn=list)  # type: ignore[arg-type]
    tiny_trainer(max_steps=3, callbacks=[kept], log_every_n_steps=1).fit(module, loader)
    return kept.found


def measure(meter: AgreementMeter, batches: Sequence[Sequence[Prompt]] = BATCHES) -> list[Measured]:
    for prompts in batches:
        meter.add(prompts)
    return meter.measured()


def own_meter(module: VARGRPO, **options: Any) -> AgreementMeter:
    return agreement_meter(module, own_stages(module.grpo), **options)


def described_meter(module: VARGRPO, described: dict[str, Any], kl: bool = False, **options: Any) -> AgreementMeter:
    return agreement_meter(module, described_variants(module, described, kl), **options)


@pytest.fixture(scope="module")
def family() -> list[Measured]:
    """Prefixes that share their images, with a stage of another kind between them."""
    described = {
        "two": {"stage": "prefix", "num_continuations": 2},
        "all": {"stage": "all", "alpha": 0.0, "normalise": {"tokens": "batch"}},
        "one": {"stage": "prefix", "num_continuations": 1, "alpha": 1.0},
        "four": {"stage": "prefix", "num_continuations": 4, "mask_source": "disagreement"},
        "drafts": {"stage": "prefix", "num_continuations": 0},
        "suffix": {"stage": {"start": M, "stop": 4, "branches": 4, "starts": 2}, "score": "sampler", "sampling": {"top_k": 4}},
    }
    return measure(described_meter(tiny_module(), described))


ALL = {"start": 0, "stop": 4, "branches": 4}
PREFIX = {"start": 0, "stop": M, "branches": 4}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("two", {"stages": [PREFIX | {"continuations": 2}]}),
        ("all", {"stages": [ALL], "alpha": 0.0, "normalise": {"tokens": "batch"}}),
        ("one", {"stages": [PREFIX], "alpha": 1.0}),
        ("drafts", {"stages": [PREFIX | {"continuations": 0}]}),
        ("four", {"stages": [PREFIX | {"continuations": 4}], "mask_source": "disagreement"}),
        (
            "suffix",
            {
                "stages": [{"start": M, "stop": 4, "branches": 4, "starts": 2}],
                "score": "sampler",
                "sampling": {"top_k": 4},
                "micro_batch_size": 3,
            },
        ),
    ],
)
def test_the_gradients_are_those_of_training(name: str, options: dict[str, Any], family: list[Measured]) -> None:
    gradients = of_training(**options)
    row = next(row for row in family if row.variant == name)
    assert row.batches == 3
    assert row.cosine == pytest.approx(mean_cosine(gradients), abs=2e-5)
    assert row.length == pytest.approx(float(torch.stack(gradients).square().sum(dim=1).mean().sqrt()), rel=1e-4)


def test_a_kl_belongs_to_it_only_when_asked_for() -> None:
    options: dict[str, Any] = {"stages": [PREFIX], "kl_coef": 2.0, "reference": tiny_policy(1)}
    module = tiny_module(**options)
    described = {"prefix": {"stage": PREFIX}, "prefix, more": {"stage": PREFIX, "kl_coef": 4.0}}
    with_kl, more = measure(described_meter(module, described, kl=True))
    assert with_kl.cosine == pytest.approx(mean_cosine(of_training(**options)), abs=2e-5)
    assert more.cosine == pytest.approx(mean_cosine(of_training(**options | {"kl_coef": 4.0})), abs=2e-5)
    (without,) = measure(own_meter(module))
    assert without.cosine == pytest.approx(mean_cosine(of_training(stages=[PREFIX])), abs=2e-5)
    assert abs(without.cosine - with_kl.cosine) > 0.01


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_the_gradients_of_the_scales_add_up(micro_batch_size: int | None) -> None:
    module = tiny_module(stages=[ALL], micro_batch_size=micro_batch_size)
    meter, whole = own_meter(module, per_scale=True), own_meter(module)
    rows = measure(meter)
    (row,) = measure(whole)
    assert [row.scale for row in rows] == [None, *range(4)]
    assert rows[0].cosine == pytest.approx(row.cosine, abs=1e-5)
    scales = torch.stack([meter._sums["all", scale]._sum for scale in range(4)])  # type: ignore[misc]
    assert all(float(scale.norm()) > 0 for scale in scales)
    torch.testing.assert_close(scales.sum(dim=0), whole._sums["all", None]._sum, atol=1e-6, rtol=1e-4)


def test_a_scale_trains_no_layer_that_only_later_ones_leave_by() -> None:
    rows = measure(own_meter(tiny_module(stages=[PREFIX]), per_scale=True, parameters="exits.1.*"))
    assert [row.left_out for row in rows] == [0, 3, 0]


def test_variants_see_the_same_noise_and_prompts() -> None:
    described: dict[str, dict[str, Any]] = {
        "one": {"stage": "prefix", "num_continuations": 1},
        "again": {"stage": "prefix", "num_continuations": 1},
        "from more": {"stage": "prefix", "num_continuations": 3},
    }
    same = measure(described_meter(tiny_module(), described))
    assert same[1].difference == same[1].difference_standard_error == 0
    assert same[2].difference == pytest.approx(same[2].cosine - same[0].cosine)
    assert same[2].difference != 0
    (alone,) = measure(described_meter(tiny_module(), {"one": described["one"]}))
    assert alone.cosine == pytest.approx(same[0].cosine, abs=1e-5)
    (other,) = measure(described_meter(tiny_module(), {"one": described["one"]}, seed=1))
    assert abs(other.cosine - alone.cosine) > 1e-3


def test_nothing_of_the_module_changes() -> None:
    module = tiny_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    noise, counters = torch.get_rng_state(), (module.rollouts_done, module.updates_done, module.seed)
    measure(own_meter(module))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.policy.parameters())
    assert torch.equal(torch.get_rng_state(), noise)
    assert (module.rollouts_done, module.updates_done, module.seed) == counters


def test_batches_without_variance_are_left_out() -> None:
    (row, _) = measure(own_meter(tiny_module(reward=Alike())))
    assert (row.batches, row.left_out) == (0, 3)
    assert math.isnan(row.cosine)


def test_the_stages_of_the_cycle_are_measured_once_each() -> None:
    names = [v.name for v in own_stages(tiny_module().grpo)]
    assert names == ["prefix", "suffix"]
    twice = [replace(v.stage, name="all") for v in own_stages(tiny_module().grpo)]
    assert [v.name for v in own_stages(tiny_module(stages=twice).grpo)] == ["all 1", "all 2"]


def test_no_prompt_comes_again_before_all_have_been() -> None:
    batches = independent_batches(PROMPTS, 5, 2, seed=0)
    assert [len(batch) for batch in batches] == [2] * 5
    assert {prompt.id for batch in batches[:3] for prompt in batch} == {prompt.id for prompt in PROMPTS}
    assert independent_batches(PROMPTS, 5, 2, seed=0) == batches != independent_batches(PROMPTS, 5, 2, seed=1)
    with pytest.raises(ValueError, match="batches must be at least 3"):
        independent_batches(PROMPTS, 2, 2, seed=0)
    with pytest.raises(ValueError, match="only 6 training prompts"):
        independent_batches(PROMPTS, 3, 7, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        independent_batches(PROMPTS, 3, 0, seed=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stage": "all", "alhpa": 1}, "the variant 'x' has no 'alhpa'. Did you mean 'alpha'?"),
        ({"stage": "all", "optimizer": "x"}, "the variant 'x' has no 'optimizer'"),
        ({"alpha": 1}, "the variant 'x': stage must be one of prefix, suffix, all"),
        ({"stage": "all", "num_continuations": 2}, "the variant 'x': num_continuations is 2, but stage 'all'"),
        ({"stage": "suffix", "num_continuations": 0}, "the variant 'x': num_continuations is 0, but stage 'suffix'"),
        ({"stage": PREFIX, "m": 3}, "m says nothing beside a stage spelled out"),
        ({"stage": PREFIX | {"ends": 3}}, "stage has no 'ends'"),
        ({"stage": ALL | {"stop": 9}}, "ends after the last of 4 scales"),
        ({"stage": "prefix", "m": 4}, "a prefix needs m in"),
        ({"stage": "all", "alpha": -1}, "alpha must be >= 0"),
        ({"stage": "all", "mask_source": "boxe"}, "no mask source named 'boxe'"),
        ({"stage": "all", "sampling": {"top": 2}}, "sampling has no 'top'"),
    ],
)
def test_what_a_variant_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="variant 'x'") as caught:
        described_variants(tiny_module(), {"x": changes}, kl=False)
    assert says in str(caught.value)


def test_a_kl_needs_the_configurations_own() -> None:
    with pytest.raises(ValueError, match="there is no reference"):
        described_variants(tiny_module(), {"x": {"stage": "all", "kl_coef": 1.0}}, kl=True)


def test_names_are_different_and_parameters_exist() -> None:
    variants = own_stages(tiny_module().grpo)
    with pytest.raises(ValueError, match="need different names, got prefix, prefix"):
        AgreementMeter(tiny_policy(), [variants[0], variants[0]])
    with pytest.raises(ValueError, match=r"no trained parameter has a name like 'block\.\*'; there are: letter"):
        AgreementMeter(tiny_policy(), variants, parameters="block.*")


def test_the_memory_of_the_sums_is_known() -> None:
    meter = own_meter(tiny_module(), blocks=3)
    measure(meter)
    held = [t for sums in meter._sums.values() for t in (*sums._units, sums._sum) if t is not None]
    assert sum(t.numel() * t.element_size() for t in held) == meter.bytes_held == 2 * 4 * 4 * meter.size


@pytest.mark.parametrize(("name", "equal_images"), [("agreement", False), ("agreement_all", True)])
def test_the_shipped_variants_are_those_of_the_paper(name: str, equal_images: bool) -> None:
    variants = described_variants(tiny_module(untrained_lettering(), m=4), read_variants(name), kl=False)
    assert len(variants) == len(read_variants(f"{name}.yaml"))
    assert (variants[0].stage.start, variants[0].stage.stop, variants[0].grpo.credit.alpha) == (0, 7, 0.0)
    assert {v.stage.continuations for v in variants if v.stage.stop == 4} == {1, 2, 4}
    assert {v.stage.images_per_prompt for v in variants if "8 images" in v.name} == ({8} if equal_images else set())
    assert variants[0].stage.images_per_prompt == 8
    assert all(isinstance(v.grpo, GRPO) for v in variants)


@pytest.mark.parametrize(("text", "says"), [("- 1", "must map the name"), ("a: 1", "must map the name"), ("a: {", "is no YAML")])
def test_a_file_that_holds_no_variants(text: str, says: str, tmp_path: Any) -> None:
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_variants(tmp_path / "v.yaml")
    with pytest.raises(ValueError, match=r"no file of variants 'agreemnt'.*Did you mean 'agreement'"):
        read_variants("agreemnt")
