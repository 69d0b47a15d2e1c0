"""Finds the wanted state dict among all that a trainer keeps in one file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from varrl_lightning.weights.files import KEY, shortened
from varrl_lightning.weights.wrappers import COUNT, plain_name, prefixes

_NO_MODEL = re.compile(r"(?:^|_)(?:opt|optim|optimi[sz]ers?|scaler|(?:lr_)?schedulers?|rng|random)(?:_|$)")
"""Names of what trainers keep beside models, which may hold tensors by the names of weights: moments of an optimizer."""
_DEEPEST = 5
"""Mappings inside one another that are searched."""
POSITION = ("epoch", "iter", "iteration", "step", "steps", "global_step", "global_steps", "g_it")
"""Names under which trainers say how far they were."""
_OF_A_FIT_RUN = "varrl"


def wanted_tensors(
    content: Any, file: str, key: str = "", nested: Sequence[str] = (), marks: Sequence[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """The tensors of the wanted state dict, and where it is in the content: names joined by `/`, empty for the content itself.

    Args:
        content: of a torch file.
        file: the file's name, for messages.
        key: where it is, if the caller knows; may end in what its names begin with.
        nested: names at the top, of which the first that exists is taken.
        marks: tensors by which the wanted state dict is known among several, as of `read_tensors`.

    Raises:
        ValueError: when there is none, or several could be meant; lists them, and says how to choose.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected a dict of tensors")
    if key:
        return _at(content, file, key, marks)
    if _OF_A_FIT_RUN in content:
        raise ValueError(
            f"{file} is a checkpoint of a fit run. Write its weights into a file of their own: varrl export --config CONFIG "
            f"--ckpt_path {file} --output WEIGHTS.safetensors"
        )
    found = dict(_state_dicts(content, ""))
    known = [name for name in nested if isinstance(content.get(name), Mapping)]
    if any(_has(x, marks) for x in found.values()):
        known = [name for name in known if _has(content[name], marks)]
    if known:
        return _all_tensors(content[known[0]], file, f", under {known[0]!r},"), known[0]
    if len(found) > 1:
        found = {path: x for path, x in found.items() if _has(x, marks)} or found
    if len(found) > 1:
        raise ValueError(f"{file} holds several state dicts that could be meant; choose one of {_choices(file, found)}")
    for path, tensors in found.items():
        return _one_model(tensors, file, path, marks), path
    return _all_tensors(content, file, f" (looked for {', '.join(nested)})" if nested else ""), ""


def position(content: Any, path: str) -> str:
    """What a file says about how far its trainer was, in words; empty where it says nothing."""
    said: dict[str, Any] = {}
    for part in ("", *path.split("/")):
        content = content.get(part) if part and isinstance(content, Mapping) else content
        if isinstance(content, Mapping):
            said |= {name: content[name] for name in POSITION if isinstance(content.get(name), (int, float))}
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _state_dicts(content: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All mappings that hold tensors of models, each with its place; some hold more beside them."""
    if "param_groups" in content or path.count("/") >= _DEEPEST:
        return
    parts = {name: x for name, x in content.items() if isinstance(name, str) and not _NO_MODEL.search(name.lower())}
    if any(isinstance(x, Tensor) and x.dim() for x in parts.values()):
        yield path, content
    for name, inner in parts.items():
        if isinstance(inner, Mapping):
            yield from _state_dicts(inner, f"{path}/{name}" if path else name)


def _has(values: Mapping[Any, Any], marks: Sequence[str]) -> bool:
    return bool(prefixes((name for name in values if isinstance(name, str)), marks))


def _one_model(values: Mapping[Any, Any], file: str, path: str, marks: Sequence[str]) -> dict[str, Tensor]:
    """A state dict; refused where it is one of several models, of which the wanted one is a part."""
    tensors = _all_tensors(values, file, f", under {path!r}," if path else "")
    before = prefixes(tensors, marks)
    others = [name for name in map(plain_name, tensors) if not name.startswith(tuple(before)) and name != COUNT]
    if not before or "" in before or (len(before) == 1 and not others):
        return tensors
    beside = f", beside others such as {others[0]}" if others else ""
    parts = [f"{path}/{prefix[:-1]}" if path else prefix[:-1] for prefix in sorted(before)]
    raise ValueError(f"{file} holds the wanted tensors as parts of a larger model{beside}; choose one of {_choices(file, parts)}")


def _at(content: Mapping[str, Any], file: str, key: str, marks: Sequence[str]) -> tuple[dict[str, Tensor], str]:
    """The state dict at a place, in or below it, or that part of one whose names begin with the rest of the key."""
    found = dict(_state_dicts(content, ""))
    inside = {path: x for path, x in found.items() if path == key or path.startswith(f"{key}/")}
    if len(inside) > 1:
        inside = {path: x for path, x in inside.items() if _has(x, marks)} or inside
    if len(inside) > 1:
        raise ValueError(f"{file} holds several state dicts below {key}; choose one of {_choices(file, inside)}")
    for path, tensors in inside.items():
        return _all_tensors(tensors, file, f", under {path!r},"), path
    for path, tensors in found.items():
        start = f"{key.removeprefix(path).strip('/')}."
        plain = {plain_name(str(name)): x for name, x in tensors.items()}
        part = {name.removeprefix(start): x for name, x in plain.items() if name.startswith(start)}
        if key.startswith(path) and part:
            return _all_tensors(part, file, f", under {key!r},"), key
    raise ValueError(f"{file} has no state dict {key}; it has {_choices(file, found) if found else 'none'}")


def _choices(file: str, places: Sequence[str] | Mapping[str, Any]) -> str:
    return shortened([f"{file}{KEY}{place}" if place else file for place in places])


def _all_tensors(values: Mapping[Any, Any], file: str, where: str) -> dict[str, Tensor]:
    others = [f"{name} ({type(x).__name__})" for name, x in values.items() if not (isinstance(x, Tensor) and isinstance(name, str))]
    if others:
        raise ValueError(
            f"{file}{where} holds more than named tensors: {shortened(others)}; all its names: {shortened(list(values))}"
        )
    return dict(values)
