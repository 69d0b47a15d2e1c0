"""Can the optimizer move what is to be trained? Its learning rate over the run, and its parameters."""

from __future__ import annotations

import warnings

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.module import VARGRPO

LOOKED_AT = 2000
"""Rollouts of the schedule that are looked at, at most."""


def optimizer_trains(model: VARGRPO, steps: int | None) -> Finding:
    """Check that the learning rate is above 0 somewhere in the run, and that the optimizer holds every trained parameter.

    Args:
        steps: rollouts of the run; None where it has no end.
    """
    trained = {name: p for name, p in model.policy.named_parameters() if p.requires_grad}
    if not trained:
        advice = "Every parameter of the policy is frozen: nothing can be learnt. Have those that are to be trained require_grad."
        return Finding("optimizer", False, "no parameter requires a gradient", advice)
    made = model.configure_optimizers()
    optimizer, schedule = (made[0][0], made[1][0]) if isinstance(made, tuple) else (made, None)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left_out = [name for name, p in trained.items() if id(p) not in held]
    rates = _rates(optimizer, schedule, min(steps or LOOKED_AT, LOOKED_AT))
    numbers = sum(p.numel() for p in trained.values())
    figure = (
        f"{type(optimizer).__name__}, learning rate {rates[0]:.1e} at the start, {max(rates):.1e} at its highest; "
        f"{numbers:,} numbers of {len(trained)} parameters"
    )
    if left_out:
        shown = ", ".join(left_out[:4]) + (", ..." if len(left_out) > 4 else "")
        return Finding(
            "optimizer", False, f"{figure}, {len(left_out)} of them left out", f"It must hold all of them; it lacks {shown}."
        )
    if not max(rates) > 0:
        return Finding("optimizer", False, figure, "With a learning rate of 0 no step changes anything. Give the optimizer an lr.")
    return Finding("optimizer", True, figure)


def _rates(optimizer: Optimizer, schedule: LRScheduler | None, steps: int) -> list[float]:
    """The highest learning rate of all groups in each rollout."""
    rates = [max(float(group["lr"]) for group in optimizer.param_groups)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the schedule goes on before the optimizer: nothing is trained here
        for _ in range(steps - 1 if schedule is not None else 0):
            assert schedule is not None
            schedule.step()
            rates.append(max(float(group["lr"]) for group in optimizer.param_groups))
    return rates
