"""A checkpoint written by all processes together, so that one that cannot write neither hangs the others nor leaves them behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch.distributed.checkpoint.api import CheckpointException


def write_checkpoint(trainer: L.Trainer, path: Path) -> None:
    """Save the Trainer's state as a file or, where the strategy shards it, a folder; called on every process.

    Raises:
        Exception: where writing failed; the other processes have come as far by then as this one.
    """
    try:
        with _straight_to_the_file(trainer.strategy), _deepspeed_goes_on(trainer.strategy) as finish:
            trainer.save_checkpoint(path, weights_only=False)
            finish(path)
    except CheckpointException as error:  # no Exception; FSDP2 raises it on every process
        trainer.strategy.barrier("Trainer.save_checkpoint")
        cause = next(iter(error.failures.values()))[0]
        raise RuntimeError(f"{type(cause).__name__}: {cause}") from cause
    except _WrittenByOthersError as error:
        raise error.problem from error
    except Exception:
        # The processes that could write wait there, in `save_checkpoint`.
        trainer.strategy.barrier("Trainer.save_checkpoint")
        raise


class _Streamed(TorchCheckpointIO):
    """Lightning's own keeps the whole file in memory and again in the folder for temporary files before it is moved."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


@contextmanager
def _straight_to_the_file(strategy: Strategy) -> Iterator[None]:
    former = strategy.checkpoint_io
    # Somebody's own knows better where to write; one that writes later would have its file renamed before it is written.
    if type(former) is not TorchCheckpointIO and not isinstance(former, AsyncCheckpointIO):
        yield
        return
    strategy.checkpoint_io = _Streamed()
    try:
        yield
    finally:
        strategy.checkpoint_io = former


class _WrittenByOthersError(Exception):
    """A process failed to write, and then took part in everything that the others did."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _GoesOn:
    """DeepSpeed's writer, with errors kept for later: the engine has barriers between its files."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.problem: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def save(self, state_dict: Any, path: str) -> None:
        self.attempt(lambda: self._writer.save(state_dict, path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.attempt(lambda: self._writer.makedirs(path, exist_ok=exist_ok))

    def is_decoupled(self) -> bool:
        """So the engine leaves the file `latest` to us: it would write it on rank 0 alone, with the others at a barrier."""
        return True

    def attempt(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:
            self.problem = self.problem or error


@contextmanager
def _deepspeed_goes_on(strategy: Strategy) -> Iterator[Callable[[Path], None]]:
    """Within it, DeepSpeed's engine gets through a save whatever happens; what is yielded ends the save."""
    if not isinstance(strategy, DeepSpeedStrategy):
        yield lambda _: None
        return
    engine: Any = strategy.model
    former, copy_scripts = engine.checkpoint_engine, engine._copy_recovery_script
    writer = engine.checkpoint_engine = _GoesOn(former)
    engine._copy_recovery_script = lambda path: writer.attempt(lambda: copy_scripts(path))

    def finish(path: Path) -> None:
        if strategy.is_global_zero:
            writer.attempt(lambda: (path / "latest").write_text("checkpoint", encoding="utf-8"))
        if writer.problem is not None:
            raise _WrittenByOthersError(writer.problem)

    try:
        yield finish
    finally:
        engine.checkpoint_engine, engine._copy_recovery_script = former, copy_scripts
