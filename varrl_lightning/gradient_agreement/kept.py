"""The sums of a measurement in a file, so that it can go on where it was stopped."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varrl_lightning.configuration.atomic_write import replacing
from varrl_lightning.gradient_agreement.meter import AgreementMeter
from varrl_lightning.weights.fingerprint import fingerprint


def keep_sums(meter: AgreementMeter, about: Mapping[str, Any], metric: Tensor | None, path: Path) -> None:
    """Write the sums of a meter, in one step; the file takes as many bytes as the sums do in memory.

    Args:
        about: plain values by name, which must be the same when the measurement goes on; mappings of such
            values as well.
        metric: that of the meter's gains.

    Raises:
        OSError: when it cannot be written.
    """
    held = {"about": {**about, "weights": _weights(meter)}, "metric": metric, "sums": meter.state_dict()}
    with replacing(path) as part:
        torch.save(held, part)


def kept_sums(meter: AgreementMeter, about: Mapping[str, Any], path: Path) -> tuple[Tensor | None, dict[str, Any]]:
    """The metric and the sums of such a file, the latter for `load_state_dict` of a meter with this metric.

    Args:
        meter: a meter of the same weights and variants.
        about: as for `keep_sums`.

    Raises:
        ValueError: when the file is of another measurement, or none; names what differs.
    """
    try:
        held = torch.load(path, map_location=meter.policy.device, weights_only=True)
        before = dict(held["about"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} does not hold the sums of a measurement ({error}); delete it to begin anew") from error
    _check_same(path, before, {**about, "weights": _weights(meter)})
    return held["metric"], held["sums"]


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what was measured with what is asked for, value by value, those in mappings as well."""
    if missing := [name for name, value in now.items() if isinstance(value, Mapping) and name not in before]:
        raise ValueError(
            f"{path} does not say what its gradients were {', '.join(missing)}: it was kept by an earlier version, and cannot be "
            "told from another measurement; give another --output, or delete the file to begin anew"
        )
    was, is_now = _flat(before), _flat(now)
    differ = [name for name in {**was, **is_now} if was.get(name) != is_now.get(name)]
    if differ:
        said = "; ".join(f"its {name} {_said(name, was)}, now {_said(name, is_now)}" for name in differ)
        raise ValueError(
            f"{path} is of another measurement: {said}; give the same arguments, another --output, or delete the file to begin anew"
        )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return flat


def _weights(meter: AgreementMeter) -> str:
    return fingerprint(dict(meter.policy.named_parameters()))


def _said(name: str, values: Mapping[str, Any]) -> str:
    if name not in values:
        return "is not there"
    shown = f"{values[name]!r:.200}"
    return f"have the fingerprint {values[name]}" if name == "weights" else f"is {shown}"
