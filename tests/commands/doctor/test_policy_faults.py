"""Faults planted in policies: each is found by the check that is for it, which a clean configuration passes.

Here: wrong VAE, swapped channels, pixels in [-1, 1], dropout on, batch statistics, sampler unlike teacher forcing, NaN at one
scale, zero gradient at one scale, disconnected parameter, frozen parameter, all frozen, weights that change as they are read, a
tensor missing in the weights, reference of another model, adapter not reset, adapter merged, base weights that train.
`test_reward_faults` and `test_run_faults` have the others. It takes about 12 s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import faults
from tests.faults import finding, findings, patient, written
from tests.tiny import PROMPTS, TinyPolicy, tiny_policy
from varrl_lightning.commands.doctor_channels import channels_are_kept
from varrl_lightning.commands.doctor_checklist import CHECKS
from varrl_lightning.commands.doctor_checks import Finding, weights_are_strict
from varrl_lightning.commands.doctor_patient import Patient
from varrl_lightning.commands.doctor_tokens import tokens_are_predicted
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.policies.lettering import LetteringPolicy
from varrl_lightning.policies.lora import save_adapter


def test_a_clean_configuration_passes_all(clean: dict[str, Finding]) -> None:
    assert tuple(clean) == CHECKS
    # The tiny policy was never trained, and that is said.
    assert {name: found.level for name, found in clean.items() if found.level != "pass"} == {"tokens": "warn"}
    assert all(found.seconds > 0 for found in clean.values())


def test_a_clean_adapter_passes_all(tmp_path: Path) -> None:
    found = findings(patient(tmp_path, policy=faults.with_adapter()))
    assert {name: each.level for name, each in found.items() if each.level != "pass"} == {"tokens": "warn"}
    assert found["adapter"].figure.startswith("difference to the base alone: at the start 0.0e+00, off 0.0e+00, on with")


def kind(of: type[TinyPolicy], **options: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"policy": tiny_policy(kind=of)} | options


FAULTS: dict[str, tuple[str, str, Callable[[], dict[str, Any]], str]] = {
    "dropout on": ("dropout", "FAIL", lambda: {"policy": faults.dropout_on()}, "In training mode: transformer.blocks.0.mlp.3"),
    "batch statistics": ("ratio", "FAIL", kind(faults.BatchStatistics, micro_batch_size=2), "Two passes over the same tokens"),
    "sampler unlike teacher forcing": ("sampler", "FAIL", kind(faults.Shifted), "begins at scale 3"),
    "NaN at one scale": ("gradients", "FAIL", kind(faults.NanAtAScale), "of stage suffix is not finite at scale 3"),
    "zero gradient at one scale": ("gradients", "FAIL", lambda: {"alpha": 200.0}, "Scale 2 of stage prefix has a gradient of 0"),
    "disconnected parameter": ("gradients", "FAIL", kind(faults.Disconnected), "are disconnected, and stay as they are"),
    "frozen parameter": (
        "gradients",
        "warn",
        lambda: {"policy": faults.frozen_parameter()},
        "4 parameters are frozen and stay as they are: blocks.1",
    ),
    "all frozen": ("optimizer", "FAIL", lambda: {"policy": faults.all_frozen()}, "Every parameter of the policy is frozen"),
    "weights that change as they are read": ("gradients", "FAIL", kind(faults.Restless), "changed the weights"),
    "reference of another model": (
        "reference",
        "FAIL",
        lambda: {"reference": tiny_policy(seed=1)},
        "the reference is another model than the policy",
    ),
    "adapter not reset": ("adapter", "FAIL", lambda: {"policy": faults.adapter_not_reset()}, "it was not reset"),
    "adapter merged into the base": (
        "adapter",
        "FAIL",
        lambda: {"policy": faults.merged_adapter()},
        "Scoring changed the base weights",
    ),
    "base weights that train": (
        "adapter",
        "FAIL",
        lambda: {"policy": faults.trained_base()},
        "base weights train beside the adapter",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_names(fault: str, clean: dict[str, Finding], tmp_path: Path) -> None:
    check, level, changes, told = FAULTS[fault]
    found = finding(tmp_path, check, **changes())
    assert found.level == level
    assert told in found.advice
    assert clean[check].level == "pass"


def test_a_tensor_that_no_file_holds() -> None:
    found = weights_are_strict(faults.missing_tensor)
    assert not found.passed
    assert found.figure.startswith("2 of ")
    assert "transformer.head.bias, transformer.head.weight" in found.figure
    assert weights_are_strict(tiny_policy).level == "pass"


@pytest.fixture(scope="module")
def embedded() -> LetteringPolicy:
    return LetteringPolicy.from_pretrained()


def test_a_wrong_vae(embedded: LetteringPolicy) -> None:
    found, healthy = (
        tokens_are_predicted(policy, policy.known_picture, PROMPTS[:1], True) for policy in (faults.wrong_vae(), embedded)
    )
    assert found.level == "FAIL"
    assert "does not predict this tokenizer's tokens: wrong VAE" in found.advice
    assert healthy.level == "pass"


@pytest.mark.parametrize(
    ("of", "told"),
    [(faults.Bgr, "with swapped channels, BGR"), (faults.SignedPixels, "in [-1, 1]")],
    ids=["swapped channels", "pixels in [-1, 1]"],
)
def test_wrong_pixels(of: type[LetteringPolicy], told: str, embedded: LetteringPolicy) -> None:
    ill = of(embedded.transformer, embedded.tokenizer)
    found = channels_are_kept(ill, ill.known_picture)
    assert found.level == "FAIL"
    assert f"is the known one {told}" in found.advice
    assert channels_are_kept(embedded, embedded.known_picture).level == "pass"


def test_an_adapter_that_begins_from_a_folder_may_differ(tmp_path: Path) -> None:
    save_adapter(faults.adapter_not_reset(), tmp_path / "adapter")
    arguments = {"policy": {"class_path": "tests.tiny.tiny_policy"}, "adapter": str(tmp_path / "adapter")}
    policy = {"class_path": "varrl_lightning.policies.lora.add_lora", "init_args": arguments}
    begun = Patient.of(ParsedConfig(["fit", "--config", str(written(tmp_path, policy=policy))]))
    for found in findings(begun, "adapter", "reference").values():
        assert found.passed
        assert found.figure.endswith("as expected where the adapter begins from a trained one")
