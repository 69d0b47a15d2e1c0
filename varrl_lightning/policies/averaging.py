"""The exponential moving average of a policy's trained weights, and sampling with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

PREFIX = "average."
"""Prefix of tensor names in a checkpoint: `average.transformer.blocks.0.qkv.weight` averages `policy.transformer.blocks.0...`."""


class WeightAverage(nn.Module):
    """Exponential moving average of all parameters of a policy that require a gradient.

        average <- d * average + (1 - d) * weights,   d = min(decay, (1 + n) / (10 + n)) after n optimizer steps

    The small d of the first steps lets the average of a short run leave its start. It begins at the weights themselves.

    The average is kept in float32 at least, whatever the weights are: 1 - d of a step's change is far below the last digit of
    bfloat16, in which the average would never move. It has the parameters' names, so that an adapter's average is recognised as an
    adapter's tensor by its name. Where the parameters are sharded, so is the average. It costs 4 bytes a trained weight; sampling
    with it costs a second copy of the trained weights while it lasts.

    Args:
        policy: whose weights are averaged.
        decay: d, in (0, 1); 0.99 averages over about the last 100 steps, 0.999 over the last 1000.

    Raises:
        ValueError: on a decay out of its range.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        super().__init__()
        check_decay(decay)
        self.decay = decay
        self._set_aside: list[tuple[Tensor, Tensor]] = []
        for name, parameter in _trained(policy).items():
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            # Parameters, not buffers: DDP sends the buffers of rank 0 to all others at every forward call.
            _place(self, name, parameter.detach().to(dtype, copy=True))
        self.register_state_dict_pre_hook(lambda average, *_: average.restore())  # type: ignore[no-untyped-call]

    def follow(self, policy: nn.Module) -> None:
        """Shard the average as the policy's parameters were sharded; its values stay."""
        for name, held, parameter in self._pairs(policy):
            if isinstance(parameter, DTensor) and not isinstance(held, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                sharded = distribute_tensor(held.detach().to(mesh.device_type), mesh, placements, src_data_rank=None)
                _place(self, name, sharded)

    @torch.no_grad()
    def update(self, policy: nn.Module, step: int) -> None:
        """Add the weights after an optimizer step to the average.

        Args:
            step: n, the optimizer steps before this one.
        """
        self.restore()
        decay = min(self.decay, (1 + step) / (10 + step))
        for held, parameter in self._parts(policy):
            held.lerp_(parameter.to(held.dtype), 1 - decay)

    @contextmanager
    def used(self, policy: nn.Module) -> Iterator[None]:
        """Give the policy the averaged weights inside the `with` block, and its trained ones after it, bit for bit; may be nested.

        Neither an exception nor a signal leaves the average in the policy for good: the trained weights are restored before the
        next update, and before anything is saved.
        """
        if self._set_aside:  # in use already
            yield
            return
        try:
            self._put_in(policy)
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def _put_in(self, policy: nn.Module) -> None:
        pairs = self._parts(policy)
        # The copy is complete before anything is overwritten, so that an interruption at any point can be undone.
        self._set_aside = [(parameter, parameter.clone()) for _, parameter in pairs]
        for held, parameter in pairs:
            parameter.copy_(held)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the policy its trained weights back, where they were set aside; may be interrupted and called again."""
        for parameter, value in self._set_aside:
            parameter.copy_(value)
        self._set_aside = []

    def _pairs(self, policy: nn.Module) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
        held, trained = dict(self.named_parameters()), _trained(policy)
        if changed := sorted(held.keys() ^ trained.keys()):
            raise RuntimeError(
                f"other weights are trained than when the average was begun: {changed[0]} and {len(changed) - 1} more; freeze or "
                "unfreeze weights before VARGRPO is made"
            )
        return [(name, held[name], parameter) for name, parameter in trained.items()]

    def _parts(self, policy: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Each averaged tensor with its trained one, of both the part that this process holds; they share the tensors' memory."""
        pairs = self._pairs(policy)
        if gathered := [name for name, held, parameter in pairs if isinstance(held, DTensor) != isinstance(parameter, DTensor)]:
            raise RuntimeError(
                f"the policy's {gathered[0]} is not sharded as its average is: use the average before the policy is gathered "
                "(Parallel.sampling), and after configure_model"
            )
        return [(_local(held), _local(parameter)) for _, held, parameter in pairs]

    def _apply(self, fn: Any, recurse: bool = True) -> WeightAverage:
        """Move to another device; the dtype stays, although a Trainer in half precision casts all other modules."""

        def moved(x: Tensor) -> Tensor:
            y: Tensor = fn(x)
            return y if y.dtype == x.dtype else x.to(y.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


def check_decay(decay: float) -> None:
    """Check the decay of an average.

    Raises:
        ValueError: when it is out of its range.
    """
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay must be in (0, 1), or null for no average, got {decay}")


def check_average(saved: float | None, decay: float | None, source: str = "the checkpoint") -> None:
    """Check that a checkpoint and a module both hold an average, or neither; their decays may differ.

    Raises:
        ValueError: when one has it and the other does not.
    """
    if (saved is None) != (decay is None):
        saved_has, module_has = (
            ("an average", "none (ema_decay is null)") if decay is None else ("no average", f"one (ema_decay {decay:g})")
        )
        use = "set ema_decay" if decay is None else "set ema_decay to null"
        raise ValueError(
            f"{source} holds {saved_has} of the weights, the module has {module_has}; {use} as in the run that wrote it"
        )


def has_average(names: Mapping[str, Any]) -> bool:
    """Whether a state dict of VARGRPO holds an average, by its names."""
    return any(name.startswith(PREFIX) for name in names)


def _trained(policy: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def _place(root: nn.Module, name: str, value: Tensor) -> None:
    """Register a frozen parameter under a dotted name, with modules for the parts before the last dot."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(last, nn.Parameter(value, requires_grad=False))
