"""Variants that differ in what images share of their noise do not share images. Costs a second."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import PROMPTS, tiny_module, untrained_lettering

from varrl_lightning.gradient_agreement.meter import AgreementMeter, Measured
from varrl_lightning.gradient_agreement.variants import StageShape, read_variants, variants_of
from varrl_lightning.grpo.noise import NoiseOptions

SHAPE = StageShape(2, 4, None, 2, 1, "trained")
STRATIFIED = {"stage": "prefix", "noise": {"branches": "stratified"}}


def measured(described: dict[str, dict[str, object]], **options: object) -> dict[str, Measured]:
    module = tiny_module(noise={"continuations": "common"}, **options)
    meter = AgreementMeter(module.policy, variants_of(module.policy, module.grpo, SHAPE, described))
    for batch in (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]):
        meter.add(batch)
    return {row.variant: row for row in meter.measured()}


def test_a_variant_has_the_noise_that_it_names_whatever_stands_beside_it() -> None:
    beside = measured({"own": {"stage": "prefix"}, "stratified": STRATIFIED, "fewer": {"stage": "prefix", "num_continuations": 1}})
    alone = measured({"stratified": STRATIFIED})
    assert beside["stratified"].length == alone["stratified"].length
    assert beside["stratified"].length != beside["own"].length
    assert beside["fewer"].length == measured({"fewer": {"stage": "prefix", "num_continuations": 1}})["fewer"].length


def test_what_a_variant_does_not_name_is_the_configurations() -> None:
    module = tiny_module(noise={"continuations": "common"})
    own, stratified = variants_of(module.policy, module.grpo, SHAPE, {"own": {"stage": "prefix"}, "stratified": STRATIFIED})
    assert own.grpo.noise == NoiseOptions("common", "independent")
    assert stratified.grpo.noise == NoiseOptions("common", "stratified")
    with pytest.raises(ValueError, match=r"(?s)the variant 'x'.*branches.*stratifed"):
        variants_of(module.policy, module.grpo, SHAPE, {"x": {"stage": "prefix", "noise": {"branches": "stratifed"}}})


def test_the_shipped_variants_differ_by_their_noise_alone() -> None:
    module = tiny_module(untrained_lettering(), m=4)
    described = read_variants("noise")
    variants = variants_of(module.policy, module.grpo, SHAPE, described)
    assert list({v.stage.stop: v for v in variants}) == [4, 2]
    of_four = [v for v in variants if v.stage.stop == 4]
    assert all(v.stage == of_four[0].stage and replace(v.grpo, noise=of_four[0].grpo.noise) == of_four[0].grpo for v in of_four)
    assert len({v.grpo.noise for v in variants}) == 4
