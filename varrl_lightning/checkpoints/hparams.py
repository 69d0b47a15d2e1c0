"""Keeps a module's arguments in its checkpoints as plain values, from which the module is built again."""

from __future__ import annotations

import inspect
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from varrl_lightning.configuration.renamed import ARGUMENTS, renamed_arguments, said_of
from varrl_lightning.configuration.specs import refuse_left_out, saved_arguments
from varrl_lightning.errors import SpecError, no_such_name
from varrl_lightning.strategies.read_checkpoint import read_sharded

if TYPE_CHECKING:
    from typing_extensions import Self


def plain_arguments(arguments: Mapping[str, Any], module: type, base: type) -> dict[str, Any]:
    """The arguments of a module as plain values, so that a checkpoint is read with weights_only=True and holds no weights twice.

    Args:
        arguments: the arguments as Lightning collected them.
        module: class of the module.
        base: the package's class that `module` is or derives from.

    Raises:
        SpecError: when an argument comes from a checkpoint that could not hold it.
    """
    refuse_left_out(module.__name__, arguments)
    known = inspect.signature(base.__init__).parameters  # type: ignore[misc]
    saved = saved_arguments(arguments, known)
    if inspect.signature(module.__init__).parameters.keys() <= known.keys():  # type: ignore[misc]
        saved.pop(
            "_instantiator", None
        )  # of a LightningCLI; without it, arguments stay plain when the module is loaded and saved again
    return saved


class AnswersOldArguments:
    """Base of a module that is asked by an argument's old name: the answer says today's, in place of Python's error.

    It stands in `__new__`, since Lightning and the command line read the signature of `__init__`, which stays as it is.
    """

    def __new__(cls, *_: Any, **named: Any) -> Self:
        """An empty object, as `object` makes it.

        Raises:
            SpecError: for an old name that the class has no argument of.
        """
        for name in named:
            if name in ARGUMENTS and name not in inspect.signature(cls.__init__).parameters:
                raise SpecError(said_of(name))
        return super().__new__(cls)


OF_LIGHTNING = ("map_location", "hparams_file", "strict", "weights_only")
"""Arguments of Lightning's `load_from_checkpoint`; all others are the module's."""


def check_overrides(module: type, named: Mapping[str, Any]) -> None:
    """Refuse arguments that the module does not take: Lightning would leave them out in silence.

    Raises:
        SpecError: names the argument, with the closest name or the one that took its place.
    """
    parameters = inspect.signature(module.__init__).parameters  # type: ignore[misc]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name != "self"]
    for name in named:
        if name in ARGUMENTS:
            raise SpecError(said_of(name))
        if name not in known and name not in OF_LIGHTNING:
            raise SpecError(no_such_name(module.__name__, name, known))


def readable_checkpoint(path: Any) -> Any:
    """A checkpoint as Lightning's `load_from_checkpoint` reads it: one file, with arguments named as they are today.

    Args:
        path: a file, the folder of a sharded run, or a file object, which is passed on.

    Raises:
        ValueError: for a folder that is no checkpoint.
    """
    if not isinstance(path, (str, Path)):
        return path
    if Path(path).is_dir():
        return _in_memory(read_sharded(path, "weights"))
    if not Path(path).is_file():  # an address of fsspec, or a mistake that Lightning names
        return path
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError):  # an old format, or objects that the caller may allow
        return path
    arguments = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    renamed = renamed_arguments(arguments)
    return path if renamed == arguments else _in_memory({**checkpoint, "hyper_parameters": renamed})


def _in_memory(checkpoint: dict[str, Any]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return file
