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
        with _streamed(trainer.strategy), _errors_postponed(trainer.strategy) as finish:
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


class _StreamedCheckpointIO(TorchCheckpointIO):
    """Writes a file as it goes; Lightning's own keeps all of it in memory, and again in the folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


@contextmanager
def _streamed(strategy: Strategy) -> Iterator[None]:
    """Within it, Lightning's own way to write a file is replaced by one that streams."""
    former = strategy.checkpoint_io
    # A user's own knows better where to write; but one that writes later would have its file renamed before it is written.
    if type(former) is not TorchCheckpointIO and not isinstance(former, AsyncCheckpointIO):
        yield
        return
    strategy.checkpoint_io = _StreamedCheckpointIO()
    try:
        yield
    finally:
        strategy.checkpoint_io = former


class _WrittenByOthersError(Exception):
    """A process failed to write, and then took part in everything that the others did."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _PostponingWriter:
    """DeepSpeed's writer with its errors kept for later, since the engine has barriers between its files."""

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
        """Whether the engine leaves the file `latest` to its caller: it would write it on rank 0, with the others at a barrier."""
        return True

    def attempt(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:
            self.problem = self.problem or error


@contextmanager
def _errors_postponed(strategy: Strategy) -> Iterator[Callable[[Path], None]]:
    """Within it, DeepSpeed's engine gets through a save whatever happens; the function it yields ends the save, or raises."""
    if not isinstance(strategy, DeepSpeedStrategy):
        yield lambda _: None
        return
    engine: Any = strategy.model
    former, copy_scripts = engine.checkpoint_engine, engine._copy_recovery_script
    writer = engine.checkpoint_engine = _PostponingWriter(former)
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
