"""What is foretold of a run's memory, against what tensors and the process really take, and against sums by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser, dict_to_namespace
from tiny import PROMPTS, TinyPolicy, tiny_loader, tiny_module, tiny_policy, tiny_trainer, untrained_lettering
from torch import Tensor, nn

from tests.families import RECIPE_ARGUMENTS, innermost
from varrl_lightning.__main__ import main
from varrl_lightning.commands.doctor_memory import forecast_of
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.configuration.files import shipped_configs
from varrl_lightning.errors import MemoryFullError
from varrl_lightning.grpo.credit import Rows
from varrl_lightning.grpo.objective import detached
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.memory import Forecast, LiveBytes, Simulation, SimulationError, explain_out_of_memory, fitting_micro_batch
from varrl_lightning.memory.forecast import largest, optimizer_bytes
from varrl_lightning.memory.tracking import frozen_parts, tensors_of
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import add_lora
from varrl_lightning.policies.published import published
from varrl_lightning.strategies import configured_kind
from varrl_lightning.types import Prompt, Stage

FLOAT = 4
PREFIX, SUFFIX = Stage(0, 2, 4, 2, name="prefix"), Stage(2, 3, 4, name="suffix")


def simulated(module: VARGRPO, precision: str = "32-true") -> Simulation:
    simulation = Simulation(module.policy, module.grpo, precision)
    simulation.read(PROMPTS[0])
    return simulation


def forecast(module: VARGRPO, simulation: Simulation | None = None, **options: Any) -> Forecast:
    return Forecast(
        module.policy,
        simulation or simulated(module),
        (PREFIX, SUFFIX),
        module.optimizer_factory,
        2,
        **{"foreach": False, **options},
    )


# --- counting -------------------------------------------------------------------------------------------------------------------


def test_bytes_are_counted_from_the_first_to_the_last_tensor_on_a_block() -> None:
    weight = torch.zeros(100)
    with LiveBytes([weight]) as tracked:
        a = torch.ones(10)  # 40 bytes
        view = a[2:5]
        del a
        assert tracked.live == 40
        view.add_(1)
        weight.view(10, 10).mul_(2)  # known beforehand
        b = view + 1  # 12 bytes
        assert (tracked.live, tracked.peak) == (52, 52)
        del view
        assert (tracked.live, tracked.take_peak()) == (12, 52)
        assert tracked.take_peak() == 12
        del b
        assert tracked.live == 0


def test_what_autograd_keeps_is_counted() -> None:
    x = torch.ones(10, requires_grad=True)
    with LiveBytes([x]) as tracked:
        y = (x * 2).exp().sum()
        kept = tracked.live
        assert kept == 40 + FLOAT  # the exponential, for its own derivative; and the sum
        del y
        assert tracked.live == 0


# --- foretold and real ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "depth", "stage"),
    [
        pytest.param(16, 1, Stage(0, 4, 4, 2), id="small"),
        pytest.param(32, 2, Stage(4, 6, 4), id="middle", marks=pytest.mark.slow),
        pytest.param(16, 1, Stage(0, 4, 4, 0), id="drafts"),
        pytest.param(64, 4, Stage(0, 4, 4, 2), id="large", marks=pytest.mark.slow),
    ],
)
def test_a_rollout_and_an_update_take_what_was_foretold(width: int, depth: int, stage: Stage) -> None:
    module = tiny_module(untrained_lettering(width, depth), kl_coef=0.1)
    policy, simulation = module.policy, simulated(module)
    drawn, trained = simulation.rollout(stage, 8, 4), simulation.update(stage, 3)
    known = tensors_of(policy.transformer, module.reference.transformer, *frozen_parts(policy).values())  # type: ignore[union-attr]
    prompts = [PROMPTS[0]] * 2
    with LiveBytes(known) as tracked:
        keys = prompt_keys(0, 0, prompts, policy.device)
        rollout = sample_tree(policy, prompts, stage, module.sampling, keys, 4)
        assert tracked.peak == pytest.approx(max(drawn.sampling, drawn.decoding), rel=0.15)
        assert tracked.live == pytest.approx(drawn.kept, rel=0.15)
    lengths = rollout.schedule.lengths[stage.start : stage.stop]
    of_token = torch.zeros(3, sum(lengths))
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    known += [*rollout.tokens, of_token, *(p.grad for p in policy.parameters() if p.grad is not None)]
    with LiveBytes(known) as tracked:
        cond = policy.encode_prompts(prompts[:1]).repeat(3)
        new = policy(
            [t[:3] for t in rollout.tokens],
            cond,
            stage.start,
            stage.stop,
            score=module.grpo.objective.score,
            reference=module.reference,
        )
        rows = Rows(of_token[:, 0], of_token, of_token, of_token)
        module.grpo.objective(new, detached(new), of_token, rows, lengths)[0].backward()
        assert tracked.peak == pytest.approx(trained, rel=0.15)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak resident memory is counted by Linux")
def test_the_process_grows_by_what_was_foretold() -> None:
    """A second measure that knows nothing of tensors: a 1M-parameter model, in a process whose freed memory goes back at once."""
    script = Path(__file__).parents[2] / "examples" / "benchmarks" / "memory.py"
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, str(script), "--model", "lettering", "--width", "256", "--branches", "8"]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300).stdout
    found = json.loads(out)
    for phase in ("rollout", "update"):
        assert found[f"{phase} predicted"] == pytest.approx(found[f"{phase} tensors"], rel=0.02)
        assert found[f"{phase} predicted"] == pytest.approx(found[f"{phase} resident"], rel=0.15)


ONE_OF_EACH_FAMILY = [
    family if family in ("switti", "var_d16") else pytest.param(family, marks=pytest.mark.slow)
    for family in sorted(RECIPE_ARGUMENTS)
]
"""The cheapest with a text encoder and without; the others are slow tests."""


@pytest.mark.parametrize("family", ONE_OF_EACH_FAMILY)
def test_every_family_can_be_simulated_and_nothing_fake_stays_behind(family: str, tmp_path: Path) -> None:
    spec = yaml.safe_load(shipped_configs()[f"{family}_ocr.yaml"].read_text())["model"]["policy"]
    innermost(spec).update(RECIPE_ARGUMENTS[family](tmp_path), dtype="float32")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--policy", type=VARPolicy)
    policy = parser.instantiate(parser.parse_object({"policy": spec})).policy
    module = tiny_module(policy, kl_coef=0.1, m=2, sampling=None)
    simulation = Simulation(policy, module.grpo, "bf16-mixed")
    prompt = Prompt('a sign "OPEN"', label=1)
    simulation.read(prompt)
    stage = Stage(0, 2, 2, 2)
    drawn, trained = simulation.rollout(stage, 2, 2), simulation.update(stage, 2)
    with (
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        LiveBytes(tensors_of(policy.transformer, *frozen_parts(policy).values())) as tracked,
    ):
        rollout = sample_tree(policy, [prompt], stage, module.sampling, prompt_keys(0, 0, [prompt], policy.device), 2)
    assert tracked.peak == pytest.approx(max(drawn.sampling, drawn.decoding), rel=0.15)
    assert type(rollout.images) is Tensor
    assert trained > 0


class Peeking(TinyPolicy):
    """Draws as many scales as a tensor says."""

    def decode_latent(self, latent: Tensor) -> Tensor:
        return super().decode_latent(latent[: int(latent.sum())])


def test_code_that_looks_at_values_is_said_to_do_so() -> None:
    module = tiny_module(tiny_policy(kind=Peeking))
    with pytest.raises(SimulationError, match="Peeking looks at the values of tensors"):
        simulated(module).rollout(PREFIX, 4, None)


# --- sums by hand ---------------------------------------------------------------------------------------------------------------


def test_adamw_keeps_two_moments_and_a_step_of_many_tensors_copies() -> None:
    parameters = [nn.Parameter(torch.zeros(100, 10)), nn.Parameter(torch.zeros(7))]
    size = FLOAT * 1007
    kept, temporary, problem = optimizer_bytes(torch.optim.AdamW, parameters, foreach=False, single=False)
    assert (kept, problem) == (2 * size + 2 * FLOAT, "")  # and a step counter each
    assert temporary <= 2 * FLOAT * 1000 + 100
    assert optimizer_bytes(torch.optim.AdamW, parameters, foreach=True, single=False)[1] >= size
    assert optimizer_bytes(torch.optim.SGD, parameters, foreach=False, single=False)[0] == 0


def test_an_optimizer_that_cannot_be_asked_counts_as_adamw() -> None:
    class Curious(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise ValueError(float(self.param_groups[0]["params"][0].sum()))

    def made(parameters: Iterable[Any]) -> torch.optim.Optimizer:
        return Curious(parameters, lr=0.1)

    kept, _, problem = optimizer_bytes(made, [nn.Parameter(torch.zeros(10))], foreach=False, single=False)
    assert kept == 2 * 10 * FLOAT
    assert "meta" in problem


def test_strategies_divide_what_they_shard() -> None:
    module = tiny_module(kl_coef=0.1)
    simulation = simulated(module)
    whole = FLOAT * sum(p.numel() for p in module.policy.parameters())

    def parts(strategy: str) -> tuple[float, ...]:
        found = forecast(module, simulation, strategy=strategy, world_size=4)
        sizes = [*(found.static[name] for name in ("weights", "reference", "moments", "buckets")), found.gradients]
        return tuple(round(size / whole, 2) for size in sizes)

    assert parts("ddp") == (1, 1, 2, 1, 1)
    assert parts("zero1") == (1, 1, 0.5, 1, 1)
    assert parts("zero2") == (1, 1, 0.5, 0, 0.25)
    assert parts("zero3") == (0.25, 0.25, 0.5, 0, 0.25)
    assert parts("fsdp2") == (0.25, 0.25, 0.5, 0, 0.25)
    drawing = forecast(module, simulation, strategy="fsdp2", world_size=4).rollout(PREFIX, None)[0].parts
    assert drawing["gathered weights"] == 2 * whole  # the policy and its reference


def test_an_adapter_needs_no_reference_and_trains_little() -> None:
    module = tiny_module(add_lora(tiny_policy(), rank=2), kl_coef=0.1)
    found = forecast(module)
    trained = FLOAT * sum(p.numel() for p in module.policy.parameters() if p.requires_grad)
    assert found.static["reference"] == 0
    assert found.gradients == trained
    assert found.static["weights"] > 4 * trained


def test_half_precision_halves_the_weights_and_the_branches_are_shared_out() -> None:
    module = tiny_module()
    whole, half = forecast(module), forecast(module, simulated(module, "bf16-true"))
    assert half.static["weights"] * 2 == whole.static["weights"]
    assert half.static["tokenizer"] == whole.static["tokenizer"]
    assert [forecast(module, world_size=n).rows(PREFIX) for n in (1, 3, 8)] == [8, 3, 1]


def test_images_that_are_drawn_already_count_for_the_next() -> None:
    """Of 8 branches in parts of one, only two parts are run; the others add what they leave."""
    simulation = simulated(tiny_module())
    parts = {n: simulation._sample(PREFIX, n, 1) for n in (2, 4, 8)}
    assert parts[8].kept == pytest.approx(2 * parts[4].kept, rel=0.01)
    left = parts[4].decoding - parts[2].decoding
    assert left > 0
    assert parts[8].decoding - parts[4].decoding == pytest.approx(2 * left, rel=0.05)


# --- choosing -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 9, 10, 11, 57, 109, 110, 1000])
def test_the_largest_that_fits(limit: int) -> None:
    calls = []

    def need(n: int) -> int:
        calls.append(n)
        return 10 * n + (n > 5)

    fits = [n for n in range(1, 11) if 10 * n + (n > 5) <= limit]
    assert largest(need, limit, 10) == max(fits, default=0)


@pytest.mark.slow
def test_auto_fits_and_one_more_call_would_not_be_saved() -> None:
    module = tiny_module(kl_coef=0.1)
    found = forecast(module)
    new = ("gradients", "prompts", "rollout", "working")

    def need(n: int) -> int:
        return max(sum(found.update(s, n).parts[p] for p in new) for s in (PREFIX, SUFFIX))

    for size in (1, 3, 8):
        available = int(need(size) / 0.9) + 2
        chosen = fitting_micro_batch(found, available, begun=True)
        assert need(chosen) <= 0.9 * available
        assert -(-8 // chosen) == -(-8 // size)
    with pytest.raises(MemoryFullError, match="no room for a single branch"):
        fitting_micro_batch(found, need(1) // 2, begun=True)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_auto_changes_nothing_and_a_checkpoint_remembers_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {}
    for size in ("auto", None):
        module = tiny_module(kl_coef=0.1, micro_batch_size=size)
        trainer = tiny_trainer(max_steps=1, limit_val_batches=0)
        trainer.fit(module, tiny_loader(), tiny_loader())
        runs[size] = torch.cat([p.detach().flatten() for p in module.policy.parameters()])
        if size == "auto":
            assert module.micro_batch_size == 8  # megabytes are always there
            assert float(trainer.callback_metrics["micro_batch_size"]) == 8
            module.micro_batches.asked = 3
            trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.testing.assert_close(runs["auto"], runs[None])
    again = tiny_module(kl_coef=0.1, micro_batch_size="auto")
    tiny_trainer(max_steps=2, limit_val_batches=0).fit(again, tiny_loader(), tiny_loader(), ckpt_path=str(tmp_path / "x.ckpt"))
    assert again.micro_batch_size == 3


@pytest.mark.parametrize("size", [0, -1, "all"])
def test_a_wrong_micro_batch_size_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"micro_batch_size must be (at least 1|an integer or auto or None), got"):
        tiny_module(micro_batch_size=size)


def test_a_full_memory_names_the_setting() -> None:
    told = r"Lower model.images_at_once, now 4; `varrl doctor --memory`"
    with pytest.raises(MemoryFullError, match=told) as caught, explain_out_of_memory("images_at_once", 4):
        torch.empty(1 << 60)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(MemoryFullError, match="micro_batch_size, now all at once"), explain_out_of_memory("micro_batch_size", None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="something else"), explain_out_of_memory("micro_batch_size", None):
        raise RuntimeError("something else")


class Greedy(TinyPolicy):
    def decode_latent(self, latent: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_rollout_that_does_not_fit_names_images_at_once() -> None:
    with pytest.raises(RuntimeError, match="images_at_once, now all at once"):
        tiny_trainer(max_steps=1, limit_val_batches=0).fit(tiny_module(tiny_policy(kind=Greedy)), tiny_loader(), tiny_loader())


# --- the command ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    Path("words.jsonl").write_text("".join(json.dumps({"text": p.text}) + "\n" for p in PROMPTS))
    model = {"policy": {"class_path": "tiny.untrained_lettering"}, "reward": "tiny.LeftBright", "mask_source": "full", "m": 4}
    return {
        "model": model | {"group_size": 4},
        "data": {"train": "words.jsonl", "batch_size": 2},
        "trainer": {"accelerator": "cpu"},
    }


def doctor(config: dict[str, Any], *arguments: str) -> int:
    Path("x.yaml").write_text(yaml.safe_dump(config))
    return main(["doctor", "--config", "x.yaml", "--memory", *arguments])


@pytest.mark.slow
def test_the_table_and_what_to_turn(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(config, "--json", "--memory-limit", "0.01") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"]
    turned = dict(line.removeprefix("set model.").split(" (")[0].split(" to ") for line in found["advice"])
    assert turned.keys() >= {"images_at_once"}
    assert doctor(config, "--memory-limit", "0.01", *(f"--model.{name}={value}" for name, value in turned.items())) == 0
    out = capsys.readouterr().out
    assert "fits 0.01 GiB (--memory-limit)" in out
    assert all(name in out for name in ("rollout", "decode", "update", "optimizer step", "checkpoint save"))


def test_a_group_that_a_reward_compares_is_counted(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is given all A * K images of it, in fp32, beside those that it samples; prefixes have K = 2, suffixes 1."""
    rewards = {"light": {"reward": "tiny.LeftBright", "weight": 1.0}, "tests.rewards.test_whole_groups.Rank": 0.5}
    config["model"] |= {"policy": {"class_path": "tiny.tiny_policy"}, "m": 2, "reward": rewards}
    Path("x.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # as for every command
    found = forecast_of(ParsedConfig(["fit", "--config", "x.yaml"]))
    height, width = tiny_policy().schedule().image_size
    counted = {stage.name: found.whole_group(stage) for stage in found.stages}
    assert counted == {"prefix": 4 * 2 * 4 * 3 * height * width, "suffix": 4 * 4 * 3 * height * width}
    assert [phase.parts["whole group"] for phase in found.rollout(found.stages[0], None)] == [counted["prefix"]] * 2
    assert forecast(tiny_module()).whole_group(found.stages[0]) == 0


def test_weights_that_do_not_fit_are_to_be_sharded(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(config, "--memory-limit", "0.0005") == 1
    said = capsys.readouterr()
    assert "weights, gradients and moments alone take" in said.out
    assert said.err.startswith("Simulating sampling and training without weights"), "it takes minutes for large models"
    assert "Looking for settings" in said.err


def test_unknown_weights_are_named(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config["model"]["policy"] = {
        "class_path": "varrl_lightning.InfinityPolicy.from_pretrained",
        "init_args": {"path": "my_model.pth", "tokenizer": "my_vae.pth"},
    }
    assert doctor(config) == 1
    error = capsys.readouterr().err
    assert "my_model.pth" in error
    assert "published file name" in error


@pytest.mark.parametrize(
    ("given", "world", "kind"),
    [
        ("auto", 1, "single"),
        ("auto", 2, "ddp"),
        ("ddp", 2, "ddp"),
        ("fsdp2", 2, "fsdp2"),
        ("zero3", 2, "zero3"),
        ("deepspeed_stage_2", 2, "zero2"),
    ],
)
def test_names_of_strategies(given: str, world: int, kind: str) -> None:
    assert configured_kind(given, world)[0] == kind


PUBLISHED = {"var_d16": 0.310, "infinity_2b": 2.205, "infinity_8b": 8.376, "switti": 2.471}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_public_models_are_known_without_their_weights(recipe: str) -> None:
    spec = yaml.safe_load(shipped_configs()[f"{recipe}_ocr.yaml"].read_text())["model"]["policy"]
    policy = published(dict_to_namespace(spec))
    assert policy is not None
    base = sum(p.numel() for n, p in policy.transformer.named_parameters() if ".lora_" not in n)
    assert base / 1e9 == pytest.approx(PUBLISHED[recipe], rel=0.002)
    assert all(p.is_meta for p in policy.transformer.parameters())
