"""Does every stage train what it should? One real backward pass for each: loss, scales, and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.gradient_agreement.meter import only_scale
from varrl_lightning.grpo.credit import Credit, Rows
from varrl_lightning.grpo.objective import detached, flat
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.grpo.stopwatch import Stopwatch
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import has_adapter
from varrl_lightning.types import LogProbs, Prompt, Rollout, Stage
from varrl_lightning.weights.fingerprint import SAMPLED, checksums


@dataclass
class StageGradients:
    """The gradients of one update of a stage, which is not made.

    Args:
        stage: that was sampled.
        prompts: of the rollout.
        stand_in: whether advantages of +1 and -1 by turns stood in for the rewards', which gave nothing to learn from.
        loss: of all branches.
        norms: of each scale's share of the loss, in the first micro-batch where it has one; by scale, from 0.
        unweighted: scales whose tokens have no weight in any branch with an advantage.
        reached: names of parameters that the loss depends on.
        seconds: of the forward and backward passes of all branches.
    """

    stage: Stage
    prompts: int
    stand_in: bool
    loss: float = 0.0
    norms: dict[int, float] = field(default_factory=dict)
    unweighted: list[int] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    seconds: float = 0.0


def stage_gradients(model: VARGRPO, rollout: Rollout, credit: Credit | None) -> StageGradients:
    """Make the backward pass of a rollout, and another for each scale; no parameter's `grad` is set.

    Args:
        credit: of all its branches; None where the rewards failed.
    """
    stage, branches = rollout.stage, len(rollout.branches)
    learns = credit is not None and bool(credit.policy_weights.any())
    rows = credit.rows(rollout.branches, branches) if credit is not None and learns else _stand_in(rollout)
    found, stopwatch = StageGradients(stage, len(rollout.prompts), not learns), Stopwatch()
    scales, lengths = range(stage.start, stage.stop), rollout.schedule.lengths[stage.start : stage.stop]
    trained = {name: p for name, p in model.policy.named_parameters() if p.requires_grad}
    passes = model.grpo.log_probs(model.policy, rollout, model.micro_batches.number or branches, model.reference)
    while True:
        with stopwatch("update"), torch.enable_grad():
            part, new = next(passes, (None, None))
            if part is None or new is None:
                break
            loss = _loss(model, new, rollout, part, rows[part])
            only = {t: only_scale(rows[part], t - stage.start, lengths) for t in scales if t not in found.norms}
            asked = {scale: of_scale for scale, of_scale in only.items() if _teaches(of_scale)}
            gradients = torch.autograd.grad(loss, list(trained.values()), retain_graph=bool(asked), allow_unused=True)
        found.loss += float(loss.detach())
        found.reached |= {name for name, gradient in zip(trained, gradients, strict=True) if gradient is not None}
        for scale, of_scale in asked.items():
            with torch.enable_grad():
                found.norms[scale] = _norm(_loss(model, new, rollout, part, of_scale), list(trained.values()))
    found.seconds, found.unweighted = stopwatch.seconds["update"], [t for t in scales if t not in found.norms]
    return found


def _loss(model: VARGRPO, new: LogProbs, rollout: Rollout, part: slice, rows: Rows) -> Tensor:
    lengths = rollout.schedule.lengths[rollout.stage.start : rollout.stage.stop]
    loss, _ = model.grpo.objective(new, detached(new), flat(rollout.log_probs)[part], rows, lengths)
    return loss


def _teaches(rows: Rows) -> bool:
    """Whether some branch has both an advantage and a token with a weight."""
    return bool(((rows.advantages != 0)[:, None] & (rows.policy_weights != 0)).any())


def _norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None))


def _stand_in(rollout: Rollout) -> Rows:
    R, L = len(rollout.branches), sum(rollout.schedule.lengths[rollout.stage.start : rollout.stage.stop])
    device = rollout.images.device
    ones = torch.ones(R, L, device=device)
    return Rows(1.0 - 2.0 * (torch.arange(R, device=device) % 2), ones, ones / (R * L), ones / (R * L))


def gradients_reach_all(
    model: VARGRPO, of_stages: Callable[[], Mapping[Stage, StageGradients]], prompts: Sequence[Prompt]
) -> Finding:
    """Check that each stage's loss and gradient are finite at every scale and not 0, and reach every trained parameter.

    Args:
        of_stages: makes the backward passes; the weights are compared before and after.
        prompts: of which one image is sampled in full, where the stages leave parameters out.
    """
    before = checksums(model.policy.state_dict(), SAMPLED)
    found = list(of_stages().values())
    now = checksums(model.policy.state_dict(), SAMPLED)
    wrong = [line for of_stage in found for line in _faults(of_stage)]
    if changed := [name for name in now if now[name] != before[name]]:
        wrong.append(f"A forward and backward pass changed the weights {_some(changed)}: only the optimizer may write to them.")
    trained = {name for name, p in model.policy.named_parameters() if p.requires_grad}
    missing = trained - set().union(*(of_stage.reached for of_stage in found))
    connected = _connected(model.policy, prompts[0], missing) if missing else set()
    if cut := sorted(missing - connected):
        wrong.append(
            f"No loss reaches the trained parameters {_some(cut)}: they are disconnected, and stay as they are. Look for a detach, "
            "a part that is not called, or a computation under no_grad."
        )
    figure = "; ".join(map(_figure, found)) + f"; {len(trained - missing)} of {len(trained)} parameters reached"
    if connected:
        figure += f", {len(connected)} others belong to scales or inputs that this cycle does not train"
    return Finding("gradients", not wrong, figure, "\n".join(wrong) or _frozen(model.policy))


def _figure(found: StageGradients) -> str:
    norms = ", ".join(f"{scale + 1}: {norm:.1e}" for scale, norm in found.norms.items())
    told = ", with advantages of +1 and -1, since the rewards give none" if found.stand_in else ""
    return f"{found.stage.name}: loss {found.loss:.1e}, gradient by scale {norms}{told}"


def _faults(found: StageGradients) -> Iterator[str]:
    of_stage = f"of stage {found.stage.name}"
    bad = [scale + 1 for scale, norm in found.norms.items() if not math.isfinite(norm)]
    if bad:
        yield f"The gradient {of_stage} is not finite at scale {bad[0]}: every step would be dropped. See what is computed there."
    elif not math.isfinite(found.loss):
        yield f"The loss {of_stage} is not finite: every step would be dropped."
    if found.unweighted:
        yield (
            f"Scale {found.unweighted[0] + 1} {of_stage} has a gradient of 0, since its tokens have no weight: take a smaller "
            "alpha, or a mask that leaves them some (mask.outside)."
        )
    zero = [scale + 1 for scale, norm in found.norms.items() if norm == 0 and scale not in found.unweighted]
    if zero:
        yield f"Scale {zero[0]} {of_stage} has a gradient of 0: no trained parameter decides its tokens. Look for a detach."


def _frozen(policy: VARPolicy) -> str:
    """A warning of parameters that do not train beside others that do; under an adapter that is as it should be."""
    frozen = [name for name, p in policy.transformer.named_parameters() if not p.requires_grad]
    if has_adapter(policy) or not frozen:
        return ""
    return (
        f"{len(frozen)} parameters are frozen and stay as they are: {_some(frozen)}. If that is a mistake, have them require_grad."
    )


def _connected(policy: VARPolicy, prompt: Prompt, names: set[str]) -> set[str]:
    """Those of some trained parameters that the logits of any scale depend on, with the prompt or without it as in guidance."""
    wanted = {name: p for name, p in policy.named_parameters() if name in names}
    cond = policy.encode_prompts([prompt])
    state = policy.begin(cond, policy.default_sampling, prompt_keys(0, 0, [prompt], policy.device))
    tokens = policy.sample(state, len(cond.schedule)).tokens
    reached: set[str] = set()
    for inputs in (cond.tensors, cond.unconditional):
        if inputs:
            with torch.enable_grad():
                features = policy.span_features(inputs, tokens, 0, len(cond.schedule), cond.schedule)
                total = torch.stack([policy.logits(x).float().square().mean() for x in features]).sum()
                gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
            reached |= {name for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
    return reached


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
