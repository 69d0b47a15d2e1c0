"""Keys and values that a policy keeps between scales: immutable to their holders, written in place where no holder can see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, (R, heads, positions, d / heads)."""


class Room:
    """Buffers of one layer's keys and values, filled from the front.

    `filled` is the high-water mark: positions before it were written and never change, those behind it are free.

    Args:
        positions: length of the buffers.
        key, value: tensors with the shapes that will be written, but for the number of positions.
    """

    def __init__(self, positions: int, key: Float[Tensor, "R heads _n d"], value: Float[Tensor, "R heads _n d"]) -> None:
        self.buffers = tuple(x.new_empty((*x.shape[:2], positions, *x.shape[3:])) for x in (key, value))
        self.filled = 0

    def write(self, key: Float[Tensor, "R heads n d"], value: Float[Tensor, "R heads n d"]) -> KeysValues:
        """Fill the next positions; return all that are filled."""
        first, self.filled = self.filled, self.filled + key.shape[2]
        for buffer, x in zip(self.buffers, (key, value), strict=True):
            buffer.narrow(2, first, x.shape[2]).copy_(x)
        keys, values = (buffer.narrow(2, 0, self.filled) for buffer in self.buffers)
        return keys, values

    def takes(self, after: int, key: Tensor, value: Tensor) -> bool:
        """Whether these can be written right behind position `after`: the positions are free, and there are enough."""
        inference = torch.is_inference_mode_enabled()
        return self.filled == after and all(
            after + x.shape[2] <= buffer.shape[2] and x.dtype == buffer.dtype and (inference or not buffer.is_inference())
            for buffer, x in zip(self.buffers, (key, value), strict=True)
        )


@dataclass(frozen=True, eq=False)
class Past:
    """Keys and values of one layer's self-attention while scales are sampled; unpacks as the pair of both.

    A past is immutable. What is appended goes into a buffer behind it. Where another continuation of the same past was appended
    before, or where the buffer is full, everything is copied to a new buffer. Rows are taken when they are needed, so that a fork
    is copied once, into the buffer that it grows in.

    It is no tuple, so that strategies, which walk through the arguments of modules, pass it on unchanged.

    Args:
        key, value: of all positions so far, before `rows` are taken.
        rows: takes rows along dimension 0; None for all as they are.
        room: the buffers whose front `key` and `value` are.
        spare: positions that a new buffer reserves behind these.
        last: one more scale reads this and none after it, so that what is appended is not kept.
    """

    key: Tensor
    value: Tensor
    rows: Callable[[Tensor], Tensor] | None = None
    room: Room | None = None
    spare: int = 0
    last: bool = False

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(2))

    def __getitem__(self, index: int) -> Tensor:
        x = (self.key, self.value)[index]
        return x if self.rows is None else self.rows(x)

    @classmethod
    def of(cls, kept: LayerCache) -> Past:
        """A layer's cache as a `Past`."""
        return kept if isinstance(kept, Past) else cls(*kept)

    def map(self, f: Callable[[Tensor], Tensor]) -> Past:
        """The past of other rows."""
        before = self.rows
        return Past(self.key, self.value, f if before is None else lambda x: f(before(x)))

    def append(self, key: Float[Tensor, "R heads n d"], value: Float[Tensor, "R heads n d"]) -> tuple[KeysValues, LayerCache]:
        """All keys and values, the new ones last; and the layer's cache for the next scale."""
        if torch.is_grad_enabled() or (self.key.dtype, self.value.dtype) != (key.dtype, value.dtype):
            return _joined(self, key, value)
        if self.last:
            return _joined(self, key, value)[0], self
        room, after = self.room, self.key.shape[2]
        if room is None or not room.takes(after, key, value):
            room = Room(after + max(self.spare, key.shape[2]), key, value)
            room.write(*self)
        together = room.write(key, value)
        return together, Past(*together, room=room)


LayerCache = KeysValues | Past
"""What the cache holds of one layer's self-attention."""


def appended(
    past: LayerCache | None, key: Float[Tensor, "R heads n d"], value: Float[Tensor, "R heads n d"]
) -> tuple[KeysValues, LayerCache]:
    """Keys and values of a past and of what follows it; and the layer's cache for the next scale."""
    if past is None:
        return (key, value), (key, value)
    return past.append(key, value) if isinstance(past, Past) else _joined(past, key, value)


def _joined(past: LayerCache, key: Tensor, value: Tensor) -> tuple[KeysValues, LayerCache]:
    together = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
    return together, together


@dataclass(frozen=True)
class Cache:
    """Results that the next scale reuses; rows (guidance half, row) along dimension 0.

    Args:
        layers: keys and values of each layer's self-attention, all positions so far; grows with the scales.
        cross: keys and values of each layer's cross-attention to the prompt; constant.
        condition: the transformer's pooled encoding of the prompt, (R, ...); constant.
    """

    layers: Sequence[LayerCache]
    cross: Sequence[KeysValues] = field(default_factory=list)
    condition: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Cache:
        """The cache of other rows, which `f` takes along dimension 0; `layers` take them when they are read."""
        layers = [Past.of(layer).map(f) for layer in self.layers]
        cross = [(f(key), f(value)) for key, value in self.cross]
        return Cache(layers, cross, None if self.condition is None else f(self.condition))

    def expecting(self, positions: int) -> Cache:
        """A copy whose layers reserve this many more positions at once when they grow.

        Args:
            positions: of the scales that will be sampled and read again; 0 where one scale follows and none reads it.
        """
        return replace(self, layers=[replace(Past.of(x), spare=positions, last=positions == 0) for x in self.layers])
