"""What VARGRPO asks of the strategy it runs under; nothing else in the package knows one strategy from another."""

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

from varrl_lightning.errors import RankError
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
    """Whether each process can draw when the others do not."""
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
        """What of it decides memory: `single`, `ddp`, `fsdp2`, `zero1`, `zero2` or `zero3`."""
        return "ddp" if isinstance(self.strategy, DDPStrategy) else "single"

    @property
    def memory_options(self) -> dict[str, bool]:
        """Options of `Forecast` that the strategy decides."""
        return {}

    # --- talking to the other processes -------------------------------------------------------------------------------------

    def gather(self, x: T) -> list[T]:
        """What each process gave, in the order of their ranks, on every process; tensors come back on the CPU."""
        if self.world_size == 1:
            return [x]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, _on_cpu(x))
        return found

    def collect(self, work: Callable[[], tuple[Local, Shared]]) -> tuple[Local, list[Shared]]:
        """Do something on every process: what each keeps for itself, and what all of them tell each other.

        Raises:
            RankError: on every process, when some raised; names them. With one process, what it raised.
        """
        if self.world_size == 1:
            kept, told = work()
            return kept, [told]
        result: tuple[Local, Shared] | None = None
        problem: Exception | None = None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others must hear of it, or they wait for ever
            problem = error
        answers = self.gather((result and result[1], problem and f"{type(problem).__name__}: {problem}"))
        said = [f"rank {rank}: {message}" for rank, (_, message) in enumerate(answers) if message]
        if said or result is None:
            raise RankError("\n".join(said)) from problem
        return result[0], cast("list[Shared]", [answer for answer, _ in answers])

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
        """Before the optimizer is built: shard what is to be sharded. May be called again and then does nothing."""

    def place_reference(self, reference: VARPolicy, policy: VARPolicy) -> None:
        """Bring a frozen reference to where the policy is, rounded alike, or the KL would not begin at zero."""
        weight = next(policy.transformer.parameters())
        reference.to(weight.device, weight.dtype)

    @contextmanager
    def sampling(self, policies: Sequence[VARPolicy]) -> Iterator[None]:
        """Within it, weights are at hand for many forward calls without gradients."""
        yield

    # --- the update ---------------------------------------------------------------------------------------------------------

    def check_optimization(self, max_grad_norm: float | None) -> None:
        """Before the strategy builds its engine: hand on what it does itself."""

    def check_average(self) -> None:
        """Before training: whether an average of the weights can be kept and put in their place.

        Raises:
            ValueError: when it cannot.
        """

    def backward(self, module: L.LightningModule, loss: Float[Tensor, ""], last: bool) -> None:
        """Backward of one micro-batch; gradients are averaged over processes with the last one.

        Every trained parameter gets a gradient: one that the loss does not reach gets zero, under every strategy.

        Args:
            loss: this process's part, such that the sum over processes and micro-batches is the loss of the batch.
        """
        if last:
            loss = _reaching(loss, [p for p in module.parameters() if p.requires_grad])
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
        """Forget the gradient, so that the step that follows changes nothing."""
        optimizer.zero_grad()


def _with_gradient(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


class _Reaching(torch.autograd.Function):
    """The identity on the loss, with gradient zero for each parameter, of no size in memory."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = [(p.shape, p.dtype, p.device) for p in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.parameters)
        return gradient, *zeros


def _reaching(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    reached: Tensor = _Reaching.apply(loss, *parameters)  # type: ignore[no-untyped-call]
    return reached


def _on_cpu(x: Any) -> Any:
    """Tensors in containers and dataclasses brought to the CPU, so that any process can unpickle them."""
    if isinstance(x, Tensor):
        return x.detach().cpu()
    if isinstance(x, dict):
        return {key: _on_cpu(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return type(x)(_on_cpu(value) for value in x)
    if is_dataclass(x) and not isinstance(x, (type, Prompt)):
        return replace(x, **{field.name: _on_cpu(getattr(x, field.name)) for field in fields(x)})
    return x
