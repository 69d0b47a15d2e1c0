"""Counts the bytes of tensors that are alive, of real ones and of fake ones that have shapes and no memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from varrl_lightning.policies.base import VARPolicy


class LiveBytes(TorchDispatchMode):
    """While active, counts every memory block that an operation returns, for as long as a tensor uses it.

    Memory that a kernel allocates and frees within one operation (a convolution's workspace) is not seen.

    Args:
        known: tensors whose memory is counted elsewhere, such as weights: neither they nor views of them are counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._blocks: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in known:
            self._follow(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the tensors that it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return out

    def take_peak(self) -> int:
        """The most bytes since the last call; the next peak begins with the bytes that are alive now."""
        peak, self.peak = self.peak, self.live
        return peak

    def _follow(self, tensor: Tensor, counted: bool = True) -> None:
        block = tensor.untyped_storage()
        address = block._cdata  # the C++ block's; its Python object lives as long as the block
        if address in self._blocks:
            return
        size = block.nbytes() if counted else 0
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._blocks[address]
            self.live -= size

        self._blocks[address] = weakref.ref(block, freed)


def tensors_of(*modules: nn.Module) -> list[Tensor]:
    """Parameters and buffers of modules."""
    return [x for module in modules for x in (*module.parameters(), *module.buffers())]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory of tensors; a block that several of them share counts once."""
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}.values())


def frozen_parts(policy: VARPolicy) -> dict[str, nn.Module]:
    """Modules that a policy has outside of its module tree, such as tokenizer and text encoder, by name."""
    return {name: part for name, part in policy.frozen_parts.items() if isinstance(part, nn.Module)}


def outline(policy: VARPolicy, mode: FakeTensorMode, device: torch.device, dtype: torch.dtype | None = None) -> VARPolicy:
    """A copy of a policy whose tensors have shapes and no memory.

    Args:
        policy: the policy; its weights may be on the `meta` device.
        device: the device that the copy's tensors report.
        dtype: dtype of the transformer's floating-point tensors, as a Trainer's precision makes them; None keeps their own.
    """
    memo: dict[int, Any] = {}

    def fake(x: Tensor, kind: torch.dtype | None) -> Tensor:
        blank = torch.empty_strided(x.shape, x.stride(), dtype=kind or x.dtype, device="meta")
        shape: Tensor = FakeTensor(mode, blank, device)
        return nn.Parameter(shape, x.requires_grad) if isinstance(x, nn.Parameter) else shape

    for part in frozen_parts(policy).values():
        memo |= {id(x): fake(x, None) for x in tensors_of(part)}
    memo |= {id(x): fake(x, dtype if x.is_floating_point() else None) for x in tensors_of(policy.transformer)}
    return copy.deepcopy(policy, memo)
