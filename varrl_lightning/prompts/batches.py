"""Reads the batches of any DataModule as prompts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from varrl_lightning.prompts.batch_extras import extra_column, extra_values
from varrl_lightning.prompts.columns import FIELDS, NEGATIVE, TEXT, prompt_values
from varrl_lightning.prompts.quotes import warn_of_batch, warn_of_prompts
from varrl_lightning.types import Prompt

TEXTS = (*TEXT, "texts", "prompts", "captions")
LABEL = ("label", "class", "labels", "classes")
FORMS = (
    "prompts or strings; integer class labels (P,); mappings with text, prompt, caption, label or class; one mapping of columns "
    "with one of these; or a tuple with one of these in it, such as (captions, images). Have the DataLoader's collate_fn return one"
)
_NUMBERED = "class {}"
_OWN = (*FIELDS, *NEGATIVE)
_LISTED = ("words", "regions", "size")
"""Fields that are lists themselves: torch's default collate transposes columns of them."""


def as_prompts(batch: Any) -> list[Prompt]:
    """Read a batch as prompts.

    Accepts prompts, strings, class labels as integers or as a tensor (P,), mappings with a text (`text`, `prompt`, `caption`)
    or a class (`label`, `class`), one mapping of columns with one of these (a Hugging Face batch), and a tuple or list that holds
    one of the former, texts before numbers: `(captions, images)`, `(images, labels)`. A single prompt, string or mapping is a
    batch of one. Other fields of a prompt (`id`, `words`, `category`, `negative` or `negative_prompt`, ...) are taken by their
    names, also from objects beside the texts: `(texts, [{"tag": ...}, ...])`. Whatever else a row has goes into `Prompt.extra`,
    tensors as plain values; but pictures, features and other large arrays are left out (`batch_extras.is_large`), and with a
    warning what JSON does not have.

    Raises:
        TypeError: names what was given and the known forms.
        ValueError: when a field has a value that no prompt can have; names the field.
    """
    prompts = _read(batch)
    if not prompts:
        raise TypeError(f"cannot read a batch of {_description(batch)} as prompts. A batch may be: {FORMS}")
    built_already = isinstance(batch, (list, tuple)) and all(isinstance(item, Prompt) for item in batch)
    (warn_of_prompts if built_already else warn_of_batch)(prompts)
    return prompts


def _read(batch: Any) -> list[Prompt] | None:
    """The prompts of a batch, None if there are none in it."""
    if isinstance(batch, Mapping):
        return _of_mapping(batch)
    batch = _listed(batch)
    if _is_item(batch):
        return [_prompt(batch)]
    if not isinstance(batch, (list, tuple)):
        return None
    if batch and all(map(_is_item, batch)):
        return [_prompt(item) for item in batch]
    if _is_ambiguous(batch):
        return None
    return _of_parts(list(zip(*batch, strict=True)) if _is_rows(batch) else batch)


def _of_parts(batch: Any) -> list[Prompt] | None:
    """The prompts of that part of a tuple which has texts, else classes; with what stands in objects beside them."""
    candidates = [(item, prompts) for item, prompts in zip(batch, map(_read, batch), strict=True) if prompts]
    if not candidates:
        return None
    item, prompts = next((both for both in candidates if not _is_numbered(both[1])), candidates[0])
    named = _listed(item)
    if not isinstance(named, (list, tuple)) or not all(isinstance(x, (str, int)) for x in named):
        return prompts
    return _with_objects(list(named), [other for other in batch if other is not item]) or prompts


def _is_rows(batch: Any) -> bool:
    """Whether a batch is one of tuples as `collate_fn=list` leaves them, (text, object) or (image, text), and not of columns."""
    if not all(isinstance(item, tuple) for item in batch):
        return False
    kinds = {tuple(map(type, item)) for item in batch}
    return len(kinds) == 1 and len(set(*kinds)) > 1 and type(None) not in set(*kinds)


def _with_objects(named: list[Any], others: list[Any]) -> list[Prompt] | None:
    """The prompts of texts or classes beside which their other values stand: `(texts, [{"tag": ...}, ...])`, or as columns."""
    for other in map(_listed, others):
        if isinstance(other, Mapping):
            return _of_mapping({_name_of(named[0]): named} | _without_texts(other, named))
        if isinstance(other, (list, tuple)) and len(other) == len(named) and all(isinstance(row, Mapping) for row in other):
            return [_prompt({_name_of(x): x} | _without_texts(row, x)) for x, row in zip(named, other, strict=True)]
    return None


def _name_of(x: str | int) -> str:
    return TEXTS[0] if isinstance(x, str) else LABEL[0]


def _without_texts(mapping: Mapping[Any, Any], named: Any) -> dict[Any, Any]:
    """What a mapping has beside the texts, or classes, that were read elsewhere; said where its own are others."""
    for name in TEXTS + LABEL:
        if name in mapping and mapping[name] is not None and _listed(mapping[name]) != named:
            warnings.warn(f"{name!r} beside the texts of a batch has others than these, and is not read", stacklevel=2)
    return {name: value for name, value in mapping.items() if name not in TEXTS + LABEL}


def _of_mapping(batch: Mapping[Any, Any]) -> list[Prompt] | None:
    key = _key(batch)
    if key is None:
        return None
    column = _listed(batch[key])
    if isinstance(column, str) or _is_integer(column):
        return [_prompt(batch)]
    if not isinstance(column, (list, tuple)) or not all(isinstance(x, str) or _is_integer(x) for x in column):
        return None
    rows = len(column)
    columns = {key: list(column)}
    for name in batch:
        if name != key and batch[name] is not None:
            own = name in _OWN or name in LABEL
            values = _column(name, _listed(batch[name]), rows) if own else extra_column(name, batch[name], rows)
            columns |= {} if values is None else {name: values}
    return [_prompt(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _column(name: str, values: Any, rows: int) -> list[Any]:
    """A field's value for each of the rows; a single value is repeated."""
    if isinstance(values, (str, int)):
        return [values] * rows
    fits = isinstance(values, (list, tuple)) and len(values) == rows
    if name in _LISTED and not (fits and all(value is None or isinstance(value, list) for value in values)):
        raise ValueError(
            f"the column {name!r} must have one list for each of {rows} rows; torch's default collate transposes such columns: "
            "use collate_fn=list"
        )
    if not fits:
        raise ValueError(f"the column {name!r} must have one value for each of {rows} rows, got {_description(values)}")
    return list(values)


def _prompt(item: Any) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if not isinstance(item, Mapping):
        item = {"text" if isinstance(item, str) else "label": item}
    line = {name: _listed(value) for name, value in item.items() if name in _OWN}
    for name in ("id", "category"):
        if line.get(name) is not None:
            line[name] = str(line[name])
    key, named = _key(item), _named(item)
    labels = [name for name in LABEL if _is_integer(_listed(item.get(name)))]
    if isinstance(named, str):
        line["text"] = named
        if line.get("label") == named:  # a class by its name
            del line["label"]
    else:
        line |= {"label": named, "text": _NUMBERED.format(named)}
    if "label" not in line and labels:
        line["label"] = _listed(item[labels[0]])
    read = {*_OWN, key, *labels[:1]}
    line |= extra_values({name: value for name, value in item.items() if name not in read})
    values, remarks = prompt_values(line, TEXTS, unread=LABEL)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    return Prompt.from_mapping(values)


def _key(mapping: Mapping[Any, Any]) -> str | None:
    """The name under which a mapping has its texts, or else its classes."""
    return next((name for name in TEXTS + LABEL if mapping.get(name) is not None), None)


def _is_item(x: Any) -> bool:
    """Whether an object stands for one prompt."""
    return isinstance(x, (Prompt, str)) or _is_integer(x) or (isinstance(x, Mapping) and isinstance(_named(x), (str, int)))


def _named(mapping: Mapping[Any, Any]) -> Any:
    key = _key(mapping)
    return None if key is None else _listed(mapping[key])


def _is_integer(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _is_numbered(prompts: list[Prompt]) -> bool:
    """Whether prompts were read from numbers alone: classes, or row numbers that lie beside captions."""
    return all(prompt.text == _NUMBERED.format(prompt.label) for prompt in prompts)


def _is_ambiguous(batch: Any) -> bool:
    """Whether only part of the rows have a text, or lists in a list may be captions (or token ids) of each image or columns."""
    if all(isinstance(item, Mapping) for item in batch) and any(map(_is_item, batch)):
        return True
    lists = isinstance(batch, list) and bool(batch) and all(isinstance(item, list) for item in batch)
    return lists and (len(batch) > 1 or any(map(_is_integer, batch[0])))


def _listed(x: Any) -> Any:
    """Convert a tensor of integers, or an array, to lists and numbers; pictures are returned unchanged."""
    if isinstance(x, Tensor):
        integer = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
        return x.tolist() if integer and x.dim() < 3 else x
    if type(x).__module__ == "numpy":
        return x.tolist() if x.dtype.kind in "iuUO" and x.ndim < 3 else x
    return x


def _description(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"Tensor ({str(batch.dtype).removeprefix('torch.')}, shape {tuple(batch.shape)})"
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with the keys {', '.join(map(repr, batch)) or '(none)'}"
    if isinstance(batch, (list, tuple)):
        return f"{type(batch).__name__} of {', '.join(dict.fromkeys(type(item).__name__ for item in batch)) or 'nothing'}"
    return type(batch).__name__
