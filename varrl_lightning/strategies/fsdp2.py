"""FSDP2: weights, gradients and optimizer state are sharded over all processes, a transformer layer at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.strategies.base import Parallel
from varrl_lightning.strategies.sharded_checkpoints import ShardedCheckpoints


class FSDP2Strategy(ShardedCheckpoints, ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with all processes of all nodes as one data-parallel group.

    Args:
        save_distributed_checkpoint: a checkpoint is a folder to which every process writes its shards; False gathers it in the
            memory of rank 0, tensor by tensor, and writes one file, as a run on one process does.
        sampling: `gathered` gathers the whole policy on every process once for a rollout, and holds it meanwhile; `sharded` gathers
            each layer anew for each scale, and holds one layer at a time.
        accumulate: between micro-batches a process holds the gradient of the `whole` policy, and all processes exchange it once; or
            its `shard`, and they exchange it with every micro-batch.
        process_group_backend: nccl on GPUs and gloo on CPUs when None.
        timeout: of a collective call.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        sampling: Literal["gathered", "sharded"] = "gathered",
        accumulate: Literal["whole", "shard"] = "whole",
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        for name, value, known in (("sampling", sampling, ("gathered", "sharded")), ("accumulate", accumulate, ("whole", "shard"))):
            if value not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {value!r}")
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.sampling: Literal["gathered", "sharded"] = sampling
        self.accumulate: Literal["whole", "shard"] = accumulate

    def setup_environment(self) -> None:
        """Begin the process group; the mesh spans all processes, where Lightning's spans one per node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


class ShardedParallel(Parallel):
    """Every process holds a part of each tensor; a layer's weights are gathered when it runs, gradients are averaged.

    The rest of the transformer, embeddings and head, is gathered from the begin of a forward call to the end of its backward, in
    which the head runs again.

    Args:
        strategy: the Trainer's.

    Raises:
        ValueError: for a strategy with tensor parallelism.
    """

    strategy: ModelParallelStrategy
    whole_everywhere = False

    def __init__(self, strategy: ModelParallelStrategy) -> None:
        if strategy._tensor_parallel_size != 1:
            raise ValueError(
                f"ModelParallelStrategy with tensor_parallel_size={strategy._tensor_parallel_size!r} splits single layers, which "
                "no policy here does; use strategy='fsdp2', which shards weights over all processes"
            )
        super().__init__(strategy)
        self.saves_folders = strategy._save_distributed_checkpoint
        self._references: list[VARPolicy] = []

    @property
    def kind(self) -> str:
        """The kind of strategy: `fsdp2`."""
        return "fsdp2"

    @property
    def memory_options(self) -> dict[str, bool]:
        """Whether weights are gathered to sample, and gradients held whole between micro-batches."""
        return {"gathers": self._option("sampling", "gathered"), "accumulates_whole": self._option("accumulate", "whole")}

    def _option(self, name: str, default: str) -> bool:
        """Whether an option of `FSDP2Strategy` has its default; Lightning's own strategy behaves as with all defaults."""
        return bool(getattr(self.strategy, name, default) == default)

    # --- the weights --------------------------------------------------------------------------------------------------------

    def configure(self, policy: VARPolicy) -> None:
        """Shard the policy where it is not yet; its frozen parts stay whole."""
        # Sampling is no forward call, and has to gather the weights nevertheless.
        shard(policy, self.strategy.device_mesh["data_parallel"], ("begin", "sample"))

    def place_reference(self, reference: VARPolicy, policy: VARPolicy) -> None:
        """Shard the reference like the policy; it is called by these methods only."""
        if not isinstance(reference, FSDPModule):
            # Not to the device as a whole: a layer is moved there when it is its turn to be sharded.
            reference.to(dtype=next(policy.transformer.parameters()).dtype)
        shard(reference, self.strategy.device_mesh["data_parallel"], ("begin", "sample", "span_halves", "on_support"))
        reference.to(policy.device)
        if reference not in self._references:
            self._references.append(reference)

    @contextmanager
    def sampling(self, policies: Sequence[VARPolicy]) -> Iterator[None]:
        """Within it the policies are whole on every process, unless the strategy says `sharded`."""
        gathered = self._option("sampling", "gathered")
        try:
            for part in [part for policy in policies for part in _parts(policy)] if gathered else ():
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            yield
        finally:
            for policy in policies:
                release(policy)

    # --- the update ---------------------------------------------------------------------------------------------------------

    def backward(self, module: L.LightningModule, loss: Float[Tensor, ""], last: bool) -> None:
        """Run the backward of one micro-batch; see `Parallel.backward`."""
        exchanged = last or not self._option("accumulate", "whole")
        for part in _parts(module):
            part.set_requires_gradient_sync(exchanged, recurse=False)
        module.manual_backward(loss * self.world_size)
        if last:
            for parameter in module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            for reference in self._references:
                release(reference)

    def gradient_norm(self, optimizer: Optimizer) -> Float[Tensor, ""]:
        """L2 norm of the whole gradient, of which each process has a part."""
        norm: Tensor = torch.nn.utils.get_total_norm(_gradients(optimizer))
        return self.sum(norm.square()).sqrt()

    def clip(self, optimizer: Optimizer, max_norm: float, norm: Float[Tensor, ""]) -> None:
        """Scale the gradient to at most `max_norm`, by torch's formula."""
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(_gradients(optimizer), factor)


def shard(policy: VARPolicy, mesh: DeviceMesh, methods: Sequence[str]) -> None:
    """Shard each block, then all the rest with the policy itself; `methods` of the policy gather as its forward does."""
    if isinstance(policy, FSDPModule):
        return
    # The warning is about writing into what a layer returned, which nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    blocks = policy.blocks()
    _check_dtypes([*blocks, policy])
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
        for name in ("remember", "through"):
            if hasattr(block, name):
                register_fsdp_forward_method(block, name)
        if hasattr(block, "remember"):
            vars(block)["remember"] = _tracked(vars(block)["remember"])
    fully_shard(policy, mesh=mesh, reshard_after_forward=False)
    for name in methods:
        register_fsdp_forward_method(policy, name)


def _check_dtypes(groups: Sequence[nn.Module]) -> None:
    """Refuse several dtypes among the trained weights of a group: torch fails in the first backward. Frozen ones may differ."""
    seen: set[nn.Parameter] = set()
    for group in groups:
        trained = {name: p for name, p in group.named_parameters() if p.requires_grad and p not in seen}
        seen.update(trained.values())
        examples = {p.dtype: name for name, p in trained.items()}
        if len(examples) > 1:
            raise ValueError(
                f"the trained weights of {type(group).__name__} have several dtypes, which FSDP2 cannot shard together: "
                + ", ".join(f"{dtype} ({name})" for dtype, name in examples.items())
                + "; load the policy with one dtype, or freeze those of the other"
            )


def release(policy: VARPolicy) -> None:
    """Free gathered weights, and what torch keeps of each call for its backward, which some calls never have."""
    if not isinstance(policy, FSDPModule):
        return
    for part in _parts(policy):
        part.set_reshard_after_forward(part is not policy, recurse=False)
        part.reshard()
    if hasattr(policy, "reset_iter_state") and policy._get_fsdp_state()._is_root:  # not in the oldest torch that is supported
        policy.reset_iter_state()


class _Tracked(torch.autograd.Function):
    """The identity, with an output that requires a gradient and an input that is given none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, marked: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:  # noqa: ARG004
        return None, None


def _tracked(remember: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A block learns that its backward is over from the gradient of its input, and stays gathered if there is none.

    What it remembers of a prompt follows from a frozen encoder's features: all blocks would be whole at the end of the backward.
    """

    def tracked(text: Tensor) -> Any:
        if torch.is_grad_enabled() and not text.requires_grad:
            text = _Tracked.apply(text, torch.zeros((), device=text.device, requires_grad=True))  # type: ignore[no-untyped-call]
        return remember(text)

    return tracked


def _parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    """This process's part of each gradient."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
