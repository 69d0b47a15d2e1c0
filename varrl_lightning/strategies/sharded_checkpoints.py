"""Checkpoints of a sharded run: a folder that every process writes its part of, or one file as a single process writes it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from varrl_lightning.weights.loading import differences

REST = "meta.pt"
"""In a folder: all that is no tensor of the model or of an optimizer; written last, so that a folder with it is complete."""
WEIGHTS, OPTIMIZER = "state_dict.", "optimizer_{}.state."
LAYOUT = "optimizer_layout"


class ShardedCheckpoints(ModelParallelStrategy):
    """A strategy that saves and loads either form in the order of hooks that a run on one process has.

    With Lightning's ModelParallelStrategy a sharded module cannot leave tensors out of a checkpoint, as an adapter's run does; an
    optimizer of some of the parameters cannot be loaded from one file; and one that has not stepped yet is saved as if it had.
    """

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning hands `load_optimizer_state_dict` what was saved: yes."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The sharded tensors; they are gathered, if at all, after hooks have left out what is not saved."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state dict, with sharded tensors."""
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder, or a file, over what is at its place.

        Raises:
            OSError: on every process, when rank 0 cannot write it.
            CheckpointException: on every process, when some process cannot write its part.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} writes to a path without storage_options, got {storage_options!r}")
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            self._write_folder(checkpoint, path)
            return
        whole = {**checkpoint, "state_dict": _map(self._whole, checkpoint["state_dict"])}
        if "optimizer_states" in checkpoint:
            whole["optimizer_states"] = _map(self._whole, checkpoint["optimizer_states"])
        self._on_rank_zero(lambda: self._write_file(whole, path))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what any number of processes have saved; the weights of a folder are loaded at once, all else by the hooks."""
        path = Path(self.broadcast(checkpoint_path))
        safe = weights_only is not False
        if not is_folder(path):
            # Pages of the file are shared by the processes of a node, and read where a shard needs them.
            return dict(torch.load(path, mmap=True, map_location="cpu", weights_only=safe))
        checkpoint: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=safe)
        layouts = checkpoint.pop(LAYOUT, None)
        stored = _stored(path)
        checkpoint["state_dict"] = self._load_weights(path, stored)
        if layouts is not None and self.optimizers:
            checkpoint["optimizer_states"] = [
                self._load_optimizer(path, stored, index, layout) for index, layout in enumerate(layouts)
            ]
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy this process's part of each tensor into the model.

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped; lists them.
        """
        state, saved = self.lightning_module_state_dict(), checkpoint["state_dict"]
        if strict and (problems := differences(saved, state)):
            raise ValueError("the checkpoint does not fit the model:\n  " + "\n  ".join(problems))
        with torch.no_grad():
            for name in [name for name in state if name in saved]:
                x, value = (t.to_local() if isinstance(t, DTensor) else t for t in (state[name], part_of(saved[name], state[name])))
                x.copy_(value)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of each tensor into the optimizers."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            ids = [i for group in saved["param_groups"] for i in group["params"]]
            if len(ids) != len(parameters):
                raise ValueError(f"the checkpoint's optimizer has {len(ids)} parameters, this one {len(parameters)}")
            of = dict(zip(ids, parameters, strict=True))
            state = {i: {key: part_of(x, of[i]) for key, x in values.items()} for i, values in saved["state"].items()}
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})

    # --- writing ------------------------------------------------------------------------------------------------------------

    def _write_folder(self, checkpoint: dict[str, Any], path: Path) -> None:
        rest = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        tensors = {WEIGHTS + name: x for name, x in checkpoint["state_dict"].items()}
        if "optimizer_states" in checkpoint:
            rest[LAYOUT] = []
            for index, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
                named, layout = _by_name(saved, self._parameter_names(optimizer))
                tensors |= {OPTIMIZER.format(index) + name: x for name, x in named.items()}
                rest[LAYOUT].append(layout)
        self._on_rank_zero(lambda: _clear(path))
        save(tensors, checkpoint_id=path)
        self._on_rank_zero(lambda: torch.save(rest, path / REST))

    def _parameter_names(self, optimizer: Optimizer) -> list[str]:
        """The names of an optimizer's parameters, in its order."""
        assert self.lightning_module is not None
        names = {id(p): name for name, p in self.lightning_module.named_parameters()}
        return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def _write_file(self, checkpoint: dict[str, Any], path: Path) -> None:
        if path.is_dir():
            _clear(path)
        Strategy.save_checkpoint(self, checkpoint, path)

    def _whole(self, x: Tensor) -> Tensor | None:
        """Gather a whole tensor on rank 0, which alone writes it."""
        whole = x.full_tensor() if isinstance(x, DTensor) else x
        return whole.detach().cpu() if self.is_global_zero else None

    def _on_rank_zero(self, work: Callable[[], object]) -> None:
        """Work on rank 0 while the others wait; where it fails, every process raises."""
        problem: str | None = None
        cause: Exception | None = None
        if self.is_global_zero:
            try:
                work()
            except Exception as error:  # whatever it is: the others must hear of it, or they wait for ever
                problem, cause = f"{type(error).__name__}: {error}", error
        problem = self.broadcast(problem)
        if problem is not None:
            raise OSError(f"rank 0 could not write the checkpoint: {problem}") from cause

    # --- reading ------------------------------------------------------------------------------------------------------------

    def _load_weights(self, path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = self.lightning_module_state_dict()
        outline = {name.removeprefix(WEIGHTS): x for name, x in stored.items() if name.startswith(WEIGHTS)}
        fitting = {name: state[name] for name, x in outline.items() if name in state and state[name].shape == x.shape}
        load({WEIGHTS + name: x for name, x in fitting.items()}, checkpoint_id=path)
        return outline | fitting  # what fits nothing is left as an outline, for the hooks to see that it was there

    def _load_optimizer(self, path: Path, stored: Mapping[str, Tensor], index: int, layout: dict[str, Any]) -> dict[str, Any]:
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        if unknown := [name for name in layout["names"] if name not in parameters]:
            raise ValueError(f"the checkpoint's optimizer has parameters that the model has not: {', '.join(unknown[:3])}")
        room: dict[str, Tensor] = {}
        for name, x in _of_optimizer(stored, index).items():
            parameter = parameters[name.rsplit(".", 1)[0]].detach()
            same = isinstance(parameter, DTensor) and x.shape == parameter.shape
            room[name] = torch.empty_like(parameter, dtype=x.dtype) if same else torch.empty(x.shape, dtype=x.dtype)
        load({OPTIMIZER.format(index) + name: x for name, x in room.items()}, checkpoint_id=path)
        return _optimizer_state(room, layout)


def read_folder(path: str | Path, parts: Literal["all", "weights", "outline"] = "all") -> dict[str, Any]:
    """Read a folder as the checkpoint that a run on one process writes; needs no other process.

    Args:
        parts: `all`; `weights` without the optimizers, to sample; `outline`, which reads no tensor: those of `state_dict`
            are on the meta device and have names, shapes and dtypes.

    Raises:
        ValueError: when it is no such folder, or was not written to its end.
    """
    path = Path(path)
    if not is_folder(path):
        raise ValueError(f"{path} is no folder of a sharded run, or was not written to its end: it has no {REST}")
    checkpoint: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=True)
    layouts, stored = checkpoint.pop(LAYOUT, None), _stored(path)
    wanted = {name: x for name, x in stored.items() if parts == "all" or name.startswith(WEIGHTS)}
    if parts != "outline":
        wanted = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in wanted.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
            load(dict(wanted), checkpoint_id=path, no_dist=True)
    checkpoint["state_dict"] = {n.removeprefix(WEIGHTS): x for n, x in wanted.items() if n.startswith(WEIGHTS)}
    if layouts is not None and parts == "all":
        checkpoint["optimizer_states"] = [_optimizer_state(_of_optimizer(wanted, i), x) for i, x in enumerate(layouts)]
    return checkpoint


def is_folder(path: str | Path) -> bool:
    """Whether a path is a complete checkpoint of a sharded run."""
    return (Path(path) / REST).is_file()


def _clear(path: Path) -> None:
    if path.is_dir() and any(p.name not in (REST, ".metadata") and p.suffix != ".distcp" for p in path.iterdir()):
        raise IsADirectoryError(f"{path} is a folder, and no checkpoint that could be written anew")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def part_of(value: Any, like: Tensor) -> Any:
    """This process's part of a whole tensor that has the shape of a sharded one; any other value as it is."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _stored(path: Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, on the meta device: shapes and dtypes without values."""
    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: x for name, x in entries.items() if isinstance(x, TensorStorageMetadata)}
    return {name: torch.empty(x.size, dtype=x.properties.dtype, device="meta") for name, x in tensors.items()}


def _of_optimizer(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    prefix = OPTIMIZER.format(index)
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _by_name(saved: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state dict as tensors by `NAME.key`, which processes can share out, and a layout with all the rest."""
    states = {names[i]: values for i, values in saved["state"].items()}
    tensors = {f"{name}.{key}": x for name, values in states.items() for key, x in values.items() if isinstance(x, Tensor)}
    others = {name: {key: x for key, x in values.items() if not isinstance(x, Tensor)} for name, values in states.items()}
    return tensors, {"names": list(names), "param_groups": saved["param_groups"], "others": others}


def _optimizer_state(tensors: Mapping[str, Tensor], layout: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_by_name`: an optimizer's state dict, which knows parameters by their place in it."""
    place = {name: i for i, name in enumerate(layout["names"])}
    state: dict[int, dict[str, Any]] = {place[name]: dict(values) for name, values in layout["others"].items()}
    for full, x in tensors.items():
        name, key = full.rsplit(".", 1)
        state[place[name]][key] = x
    return {"state": state, "param_groups": layout["param_groups"]}


def _map(f: Callable[[Tensor], Any], x: Any) -> Any:
    """Apply a function to all tensors in dicts and lists, in their order, which all processes share."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, dict):
        return {key: _map(f, value) for key, value in x.items()}
    return [_map(f, value) for value in x] if isinstance(x, list) else x
