"""Faults planted in policies: each is found by the check that is for it, which a clean configuration passes.

Here: wrong VAE, swapped channels, pixels in [-1, 1], dropout on, batch statistics, sampler unlike teacher forcing, NaN at one
scale, zero gradient at one scale, disconnected parameter, frozen parameter, all frozen, weights that change as they are read, a
tensor missing in the weights, reference of another model, adapter not reset, adapter merged, base weights that train.
`test_reward_faults` and `test_run_faults` have the others. It takes about 12 s, of which 4 are for the clean configurations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import HERE, examined, finding, first_finding, policy
from varrl_lightning.commands.doctor_checklist import CHECKS
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.policies.lettering import LetteringPolicy


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        patch.setenv("PL_GLOBAL_SEED", "0")  # seed_everything leaves its own: it is removed with this one
        patch.setenv("PL_SEED_WORKERS", "0")
        yield


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    return examined(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def clean_adapter(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    return examined(tmp_path_factory.mktemp("adapter"), **policy("with_adapter"))


@pytest.mark.parametrize("kind", ["clean", "clean_adapter"])
def test_a_clean_configuration_passes_all(kind: str, request: pytest.FixtureRequest) -> None:
    findings = request.getfixturevalue(kind)
    assert set(findings) == set(CHECKS)
    # The tiny policy was never trained, and that is said.
    assert {name for name, found in findings.items() if found.level != "pass"} == {"tokens"}
    assert findings["tokens"].level == "warn"
    assert all(found.seconds > 0 for found in findings.values())


FAULTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "dropout on": ("dropout", "FAIL", policy("dropout_on"), "In training mode: transformer.blocks.0.mlp.3"),
    "batch statistics": (
        "ratio",
        "FAIL",
        policy("batch_statistics") | {"micro_batch_size": 2},
        "Two passes over the same tokens disagree",
    ),
    "sampler unlike teacher forcing": ("sampler", "FAIL", policy("shifted"), "begins at scale 3"),
    "NaN at one scale": ("gradients", "FAIL", policy("nan_at_a_scale"), "of stage suffix is not finite at scale 3"),
    "zero gradient at one scale": ("gradients", "FAIL", {"alpha": 200.0}, "Scale 2 of stage prefix has a gradient of 0, since its"),
    "disconnected parameter": ("gradients", "FAIL", policy("disconnected"), "are disconnected, and stay as they are"),
    "frozen parameter": (
        "gradients",
        "warn",
        policy("frozen_parameter"),
        "4 parameters are frozen and stay as they are: blocks.1",
    ),
    "all frozen": ("optimizer", "FAIL", policy("all_frozen"), "Every parameter of the policy is frozen"),
    "weights that change as they are read": ("gradients", "FAIL", policy("restless"), "changed the weights"),
    "reference of another model": (
        "reference",
        "FAIL",
        {"reference": {"class_path": f"{HERE}.other_model"}},
        "the reference is another model than the policy",
    ),
    "adapter not reset": ("adapter", "FAIL", policy("adapter_not_reset"), "is not zero at the start: it was not reset"),
    "adapter merged into the base": ("adapter", "FAIL", policy("merged_adapter"), "Scoring changed the base weights"),
    "base weights that train": ("adapter", "FAIL", policy("trained_base"), "base weights train beside the adapter"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_names(fault: str, clean: dict[str, Finding], tmp_path: Path) -> None:
    check, level, changes, told = FAULTS[fault]
    found = finding(tmp_path, check, **changes)
    assert found.level == level
    assert told in found.advice
    assert clean[check].level == "pass"


def test_a_tensor_that_no_file_holds(clean: dict[str, Finding], tmp_path: Path) -> None:
    found = first_finding(tmp_path, "weights", **policy("missing_tensor"))
    assert not found.passed
    assert found.figure.startswith("2 of ")
    assert "transformer.head.bias, transformer.head.weight" in found.figure
    assert clean["weights"].level == "pass"


LETTERING = {"m": 4, "group_size": 2, "data": {"train": "builtin:lettering/train.jsonl", "validation": None}}


@pytest.mark.parametrize(
    ("check", "made", "told"),
    [
        ("tokens", "wrong_vae", "does not predict this tokenizer's tokens: wrong VAE"),
        ("channels", "bgr", "is the known one with swapped channels, BGR"),
        ("channels", "signed_pixels", "is the known one in [-1, 1]"),
    ],
    ids=["wrong VAE", "swapped channels", "pixels in [-1, 1]"],
)
def test_the_doctor_names_a_fault_of_the_pictures(check: str, made: str, told: str, tmp_path: Path) -> None:
    found = finding(tmp_path, check, **(LETTERING | policy(made)))
    assert found.level == "FAIL"
    assert told in found.advice
    assert finding(tmp_path, check, **(LETTERING | {"policy": {"class_path": EMBEDDED}})).level == "pass"


EMBEDDED = f"{LetteringPolicy.__module__}.LetteringPolicy.from_pretrained"


def test_an_adapter_that_begins_from_a_folder_may_differ(clean_adapter: dict[str, Finding], tmp_path: Path) -> None:
    from tests.faults import adapter_not_reset
    from varrl_lightning.policies.lora import save_adapter

    save_adapter(adapter_not_reset(), tmp_path / "adapter")
    arguments = {"policy": {"class_path": "tests.tiny.tiny_policy"}, "adapter": str(tmp_path / "adapter")}
    begun = {"policy": {"class_path": "varrl_lightning.policies.lora.add_lora", "init_args": arguments}}
    for check in ("adapter", "reference"):
        found = finding(tmp_path, check, **begun)
        assert found.passed
        assert found.figure.endswith("as expected where the adapter begins from a trained one")
        assert "expected" not in clean_adapter[check].figure
