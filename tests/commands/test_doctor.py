"""The doctor finds each of the illnesses, in patients that have one; `test_doctor_tokens` has the wrong VAE."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import PROMPTS, LeftBright, TinyPolicy, TinyTransformer, tiny_module, tiny_policy
from torch import Tensor, nn

from varrl_lightning.__main__ import main
from varrl_lightning.commands.doctor_checklist import CHECKS
from varrl_lightning.commands.doctor_checks import (
    dropout_is_off,
    plugins_load,
    ratio_is_one,
    reward_runs,
    sample_stages,
    sampler_is_teacher_forcing,
    weights_are_strict,
)
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Rollout, Score

NAMES = [*CHECKS, "continuations"]
"""Of a stage with several continuations; the last is left out for others."""


class Restless(TinyPolicy):
    """Teacher forcing adds noise: what dropout does to it."""

    def span_features(self, *args: Any) -> list[Tensor]:
        return [x + 0.1 * torch.randn_like(x) for x in super().span_features(*args)]


class Shifted(TinyPolicy):
    """Teacher forcing is wrong from the third scale on."""

    def span_features(self, inputs: Any, tokens: Any, start: int, stop: int, schedule: Any) -> list[Tensor]:
        features = super().span_features(inputs, tokens, start, stop, schedule)
        return [x + 0.01 * (start + i >= 2) for i, x in enumerate(features)]


class Moody:
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise RuntimeError("no connection")


class Silent:
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> list[float | None]:
        return [None] * len(images)


def _patient(kind: type[TinyPolicy] = TinyPolicy, **options: Any) -> VARGRPO:
    return tiny_module(tiny_policy(kind=kind), score=Score("sampler"), **options)


def rollouts(patient: VARGRPO) -> list[Rollout]:
    return sample_stages(patient.policy, patient.grpo, PROMPTS[:2], patient.seed, None)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    Path("words.jsonl").write_text("".join(json.dumps({"text": p.text}) + "\n" for p in PROMPTS))
    model = {"policy": {"class_path": "tiny.tiny_policy"}, "reward": "tiny.LeftBright", "mask_source": "full", "m": 2}
    data = {"train": "words.jsonl", "batch_size": 2}
    return {"model": model | {"group_size": 4}, "data": data, "trainer": {"accelerator": "cpu"}}


def _doctor(config: dict[str, Any], *arguments: str) -> int:
    Path("x.yaml").write_text(yaml.safe_dump(config))
    return main(["doctor", "--config", "x.yaml", *arguments])


def test_a_healthy_config_passes_all(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert _doctor(config, "--json", "--model.score=sampler") == 0
    found = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in found] == NAMES
    assert all(finding["passed"] for finding in found)
    # The tiny policy was never trained, and that is said.
    assert [finding["check"] for finding in found if finding["advice"]] == ["tokens"]
    assert not Path("runs").exists()


def test_one_line_for_each_check(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert _doctor(config) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] != " "]
    assert [line.split()[:2] for line in lines] == [["warn" if name == "tokens" else "pass", name] for name in NAMES]


def test_without_its_plugin_nothing_else_is_checked(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config["model"]["reward"] = "brightnes"
    assert _doctor(config, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert "no reward named 'brightnes'" in found[0]["advice"]
    assert [finding["figure"] for finding in found[2:]] == ["not checked"] * len(NAMES[2:-1])


def test_a_policy_that_cannot_be_loaded_fails_the_weights(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("w.safetensors").write_bytes(b"nothing")
    from_pretrained = "varrl_lightning.LetteringPolicy.from_pretrained"
    config["model"]["policy"] = {"class_path": from_pretrained, "init_args": {"path": "w.safetensors"}}
    assert _doctor(config) == 1
    printed = capsys.readouterr().out
    assert "pass  plugins" in printed
    assert "FAIL  weights" in printed


def test_a_wrong_config_is_status_2(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config["model"]["eta"] = -1.0
    assert _doctor(config) == 2
    assert "eta must be > 0" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}}, "x.ckpt")
    assert _doctor(config, "--ckpt_path", "x.ckpt") == 1
    assert "missing policy.transformer" in capsys.readouterr().err


def test_plugins_are_named() -> None:
    finding = plugins_load({"a": {"reward": LeftBright(), "weight": 0.5}}, "full")
    assert finding.passed
    assert finding.figure == "rewards: a (LeftBright, weight 0.5); mask source: Full"


def test_random_weights_are_found() -> None:
    trained = tiny_policy()

    def with_a_new_head() -> TinyPolicy:
        transformer = TinyTransformer()
        state = {name: value for name, value in trained.transformer.state_dict().items() if not name.startswith("head.")}
        transformer.load_state_dict(state, strict=False)
        return TinyPolicy(transformer, trained.tokenizer)

    assert weights_are_strict(tiny_policy).passed
    finding = weights_are_strict(with_a_new_head)
    assert not finding.passed
    assert "transformer.head.bias, transformer.head.weight" in finding.figure
    assert finding.figure.startswith("2 of ")


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_ratio_other_than_one_is_found(micro_batch_size: int | None) -> None:
    healthy, ill = _patient(micro_batch_size=micro_batch_size), _patient(Restless, micro_batch_size=micro_batch_size)
    assert ratio_is_one(healthy.policy, healthy.grpo, rollouts(healthy), micro_batch_size).passed
    assert not ratio_is_one(ill.policy, ill.grpo, rollouts(ill), micro_batch_size).passed


def test_the_first_scale_where_sampler_and_teacher_forcing_part_is_named() -> None:
    healthy, ill = _patient(), _patient(Shifted)
    assert sampler_is_teacher_forcing(healthy.policy, healthy.grpo, rollouts(healthy)).passed
    finding = sampler_is_teacher_forcing(ill.policy, ill.grpo, rollouts(ill))
    assert not finding.passed
    assert "begins at scale 3" in finding.advice


def test_dropout_is_found() -> None:
    patient = _patient()
    rollout = rollouts(patient)[0]
    assert dropout_is_off(patient.policy, patient.grpo, rollout).passed
    mlp = patient.policy.transformer.blocks[0].mlp
    mlp.append(nn.Dropout(0.5))  # in training mode, as every new module is
    assert dropout_is_off(patient.policy, patient.grpo, rollout).passed, "VARPolicy.train keeps everything in eval mode"
    mlp[-1].train = lambda mode=True: mlp[-1]  # a module that will not listen
    mlp[-1].training = True
    finding = dropout_is_off(patient.policy, patient.grpo, rollout)
    assert not finding.passed
    assert "are not identical" in finding.figure
    assert "blocks.0.mlp.3" in finding.advice


def test_a_new_policy_is_in_eval_mode() -> None:
    assert not any(module.training for module in tiny_policy().modules())


def test_a_reward_is_timed_and_its_failures_are_found() -> None:
    patient = _patient()
    rollout = rollouts(patient)[0]
    finding = reward_runs(patient.rewards, rollout)
    assert finding.passed
    assert "16 of 16 images scored" in finding.figure
    assert "ms an image" in finding.figure
    assert re.search(r"standard deviation \d\.\d{3}, within a prompt's images 0\.\d{3}$", finding.figure)
    assert not finding.advice
    raising = reward_runs(_patient(reward=Moody()).rewards, rollout)
    assert not raising.passed
    assert "no connection" in raising.advice


def test_a_reward_of_what_a_prompts_images_share_is_warned_of() -> None:
    """As of colour, where r_1 is shared: what differs is between prompts alone, and nothing can be learnt."""

    def of_the_prompt(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor([float(sum(map(ord, prompt.text))) for prompt in prompts]) + 1e-4 * images.mean(dim=(1, 2, 3))

    patient = _patient(reward=of_the_prompt)
    finding = reward_runs(patient.rewards, rollouts(patient)[0])
    assert finding.passed
    assert "within a prompt's images 0.000" in finding.figure
    assert "first_scale: trained" in finding.advice


@pytest.mark.filterwarnings("ignore:the reward 'Silent' gave no score")
def test_a_reward_that_scores_nothing_fails() -> None:
    patient = _patient(reward=Silent())
    finding = reward_runs(patient.rewards, rollouts(patient)[0])
    assert not finding.passed
    assert "0 of 16 images scored" in finding.figure
