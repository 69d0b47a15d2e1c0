"""What VARGRPO asks of the strategy it runs under; each subclass answers for one kind of strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import lightning as L
import torch
import torch.distributed as dist
from jaxtyping import Float
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from varrl_lightning.errors import SELF_EXPLAINING, RankError, raised_at
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Prompt

T = TypeVar("T")
Local = TypeVar("Local")
Shared = TypeVar("Shared")


def leave_group() -> None:
    """End this process's part in the process group: threads that still run when Python ends may take the process down."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class Parallel:
    """One process or DDP: every process holds all weights; gradients are averaged over processes.

    Args:
        strategy: the Trainer's; None without a Trainer.
    """

    saves_folders = False
    """Whether a checkpoint is a folder that only the strategy itself can read."""
    whole_everywhere = True
    """Whether each process can sample when the others do not."""
    fp32_masters = False
    """Whether the optimizer steps weights of its own in fp32 where the policy's are in half precision."""

    def __init__(self, strategy: Strategy | None = None) -> None:
        self.strategy = strategy

    @property
    def rank(self) -> int:
        """The number of this process."""
        return getattr(self.strategy, "global_rank", 0)

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return getattr(self.strategy, "world_size", 1)

    @property
    def kind(self) -> str:
        """The kind of strategy, which decides memory: `single`, `ddp`, `fsdp2`, `zero1`, `zero2` or `zero3`."""
        return "ddp" if isinstance(self.strategy, DDPStrategy) else "single"

    @property
    def memory_options(self) -> dict[str, bool]:
        """The options of `Forecast` that the strategy decides."""
        return {}

    # --- talking to the other processes -------------------------------------------------------------------------------------

    def gather(self, x: T) -> list[T]:
        """The values that all processes give, in the order of their ranks, on every process; tensors come back on the CPU."""
        if self.world_size == 1:
            return [x]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, _on_cpu(x))
        return values

    def run_on_all(self, work: Callable[[], tuple[Local, Shared]]) -> tuple[Local, list[Shared]]:
        """Do something on every process; returns the local part of this process's result, and the shared parts of all results.

        Raises:
            RankError: on every process, when work failed on any; names them. With one process, what it raised.
        """
        if self.world_size == 1:
            local, shared = work()
            return local, [shared]
        result: tuple[Local, Shared] | None = None
        problem: Exception | None = None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others must hear of it, or they wait for ever
            problem = error
        answers = self.gather((result and result[1], problem and _described(problem)))
        failures = [f"rank {rank}: {message}" for rank, (_, message) in enumerate(answers) if message]
        if failures or result is None:
            raise RankError("\n".join(failures)) from problem
        return result[0], cast("list[Shared]", [shared for shared, _ in answers])

    def exchange(self, sent: Sequence[tuple[int, Tensor]], received: Sequence[tuple[int, Tensor]]) -> None:
        """Send tensors to other processes and receive theirs; returns when all are there.

        Args:
            sent: (rank, what is sent to it).
            received: (rank, where to put what it sends: contiguous, of the same shape and dtype). Several of one pair of ranks
                arrive in their order.
        """
        operations = [dist.P2POp(dist.isend, x.contiguous(), rank) for rank, x in sent]
        operations += [dist.P2POp(dist.irecv, x, rank) for rank, x in received]
        if operations:
            for transfer in dist.batch_isend_irecv(operations):
                transfer.wait()

    def sum(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sum of a tensor over processes, the same on all."""
        if self.world_size == 1:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total

    def highest(self, number: int) -> int:
        """The greatest of a number over processes."""
        return max(self.gather(number))

    # --- the weights --------------------------------------------------------------------------------------------------------

    def configure(self, policy: VARPolicy) -> None:
        """Shard what is to be sharded, before the optimizer is built; does nothing when called again."""

    def place_reference(self, reference: VARPolicy, policy: VARPolicy) -> None:
        """Bring a frozen reference to where the policy is, rounded alike, or the KL would not begin at zero."""
        weight = next(policy.transformer.parameters())
        reference.to(weight.device, weight.dtype)

    @contextmanager
    def sampling(self, policies: Sequence[VARPolicy]) -> Iterator[None]:
        """Within it, weights are ready for many forward calls without gradients."""
        yield

    # --- the update ---------------------------------------------------------------------------------------------------------

    def check_optimization(self, max_grad_norm: float | None) -> None:
        """Hand on to the strategy what it does itself, before it builds its engine."""

    def check_average(self) -> None:
        """Check before training that an average of the weights can be kept and put in their place.

        Raises:
            ValueError: when it cannot.
        """

    def backward(self, module: L.LightningModule, loss: Float[Tensor, ""], last: bool) -> None:
        """Run the backward of one micro-batch; gradients are averaged over processes with the last one.

        Every trained parameter gets a gradient: one that the loss does not reach gets zero, under every strategy.

        Args:
            loss: this process's part, such that the sum over processes and micro-batches is the loss of the batch.
        """
        if last:
            loss = _with_zero_gradients(loss, [p for p in module.parameters() if p.requires_grad])
        with nullcontext() if last else self._without_sync():
            module.manual_backward(loss * self.world_size)

    @contextmanager
    def _without_sync(self) -> Iterator[None]:
        if isinstance(self.strategy, ParallelStrategy):
            with self.strategy.block_backward_sync():
                yield
        else:
            yield

    def gradient_norm(self, optimizer: Optimizer) -> Float[Tensor, ""]:
        """L2 norm of the whole gradient, the same on all processes."""
        return torch.nn.utils.get_total_norm([p.grad for p in _with_gradient(optimizer) if p.grad is not None])

    def clip(self, optimizer: Optimizer, max_norm: float, norm: Float[Tensor, ""]) -> None:
        """Scale the gradient to at most `max_norm`."""
        torch.nn.utils.clip_grads_with_norm_(_with_gradient(optimizer), max_norm, norm)

    def drop(self, optimizer: Optimizer) -> None:
        """Drop the gradient, so that the step that follows changes nothing."""
        optimizer.zero_grad()


def _described(problem: Exception) -> str:
    """An error in one line, with the line of code that it comes from unless its message says what there is to know."""
    place = "" if isinstance(problem, SELF_EXPLAINING) else raised_at(problem)
    return f"{type(problem).__name__}: {problem}{place}"


def _with_gradient(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


class _ZeroGradients(torch.autograd.Function):
    """The identity on the loss, with a zero gradient for each parameter that takes no memory."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = [(p.shape, p.dtype, p.device) for p in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.parameters)
        return gradient, *zeros


def _with_zero_gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    result: Tensor = _ZeroGradients.apply(loss, *parameters)  # type: ignore[no-untyped-call]
    return result


def _on_cpu(x: Any) -> Any:
    """The same with all tensors in containers and dataclasses on the CPU, so that any process can unpickle it."""
    if isinstance(x, Tensor):
        return x.detach().cpu()
    if isinstance(x, dict):
        return {key: _on_cpu(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return type(x)(_on_cpu(value) for value in x)
    if is_dataclass(x) and not isinstance(x, (type, Prompt)):
        return replace(x, **{field.name: _on_cpu(getattr(x, field.name)) for field in fields(x)})
    return x
