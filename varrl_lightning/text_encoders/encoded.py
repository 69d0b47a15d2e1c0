"""Reads texts that were encoded in advance: a text encoder that needs no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from varrl_lightning.errors import did_you_mean
from varrl_lightning.text_encoders.base import TextEncoder
from varrl_lightning.text_encoders.cuts import CutPrompts, cut_prompt, report_cuts
from varrl_lightning.types.quoting import quoted_words
from varrl_lightning.weights.hub import first_line
from varrl_lightning.weights.sizes import dtype_named

NAMED = 40
"""Characters of a text that a message begins with."""
PADDED = ("text", "mask")
"""Tensors with one row a token, padded with zeros to the longest text of a batch. Other tensors have one row a text."""


class EncodedTexts(TextEncoder):
    """Looks up the stored outputs of a text encoder, in its place.

    Args:
        source: a file that `save` wrote, or the encoder's output for each text, without the dimension of rows.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when `save` did not write it, or the texts differ in the names of their tensors.
    """

    place: Tensor

    def __init__(self, source: str | Path | Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.label = "the given mapping" if isinstance(source, Mapping) else str(source)
        encoded: dict[str, Mapping[str, Tensor]]
        encoded, self.kept = (dict(source), {}) if isinstance(source, Mapping) else _read(Path(source).expanduser())
        names = {tuple(sorted(tensors)) for tensors in encoded.values()}
        if len(names) != 1:
            raise ValueError(f"{self.label} must hold the same tensors for each of its texts, at least one; got {sorted(names)}")
        self.encoded = encoded
        self.register_buffer("place", torch.empty(0), persistent=False)

    @staticmethod
    def save(
        encoder: nn.Module, texts: Sequence[str], path: str | Path, dtype: str = "float32", cut_prompts: CutPrompts = "error"
    ) -> None:
        """Encode each text once and write a file for `EncodedTexts`, which also holds what was read of texts that were cut off.

        Args:
            encoder: a text encoder.
            texts: all prompts, negative prompts, and the empty text where guidance needs it; repeated ones are written once.
            dtype: of the features in the file; they are read as fp32.
            cut_prompts: whether quoted words that fall off a text are an `error`; `warn` writes the file all the same.

        Raises:
            ValueError: where quoted words fall off; names the texts and the words.
        """
        stored = dtype_named(dtype)
        texts = list(dict.fromkeys(texts))
        kept = encoder.kept_texts(texts) if isinstance(encoder, TextEncoder) else {}
        cuts = [cut_prompt(_named(text), text, quoted_words(text), kept) for text in kept]
        report_cuts(cuts, type(encoder).__name__, len(texts), cut_prompts, "write the file all the same by cut_prompts='warn'")
        tensors: dict[str, Tensor] = {}
        for index, text in enumerate(texts):
            for name, x in encoder([text]).items():
                tensors[f"{index}.{name}"] = x[0].to("cpu", stored if x.is_floating_point() else x.dtype).contiguous()
        save_file(tensors, path, metadata={"texts": json.dumps(texts), "kept": json.dumps(kept)})

    def kept_texts(self, texts: Sequence[str]) -> dict[str, str]:
        """What the encoder that wrote the file read of those texts that it cut off."""
        return {text: self.kept[text] for text in texts if text in self.kept}

    @property
    def device(self) -> torch.device:
        """The device of the results; the stored tensors stay on the CPU."""
        return self.place.device

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """The tensors of each text, padded with zeros to the longest of the batch.

        Raises:
            ValueError: for a text that was not encoded; names it.
        """
        rows = [self._look_up(text) for text in texts]
        return {name: self._batch([row[name] for row in rows], padded=name in PADDED) for name in rows[0]}

    def _look_up(self, text: str) -> Mapping[str, Tensor]:
        if text not in self.encoded:
            raise ValueError(
                f"the text {text!r} is not among the {len(self.encoded)} of {self.label}.{did_you_mean(text, self.encoded)} "
                "Write a file with it by EncodedTexts.save(encoder, texts, path), or give the text encoder itself"
            )
        return self.encoded[text]

    def _batch(self, rows: list[Tensor], padded: bool) -> Tensor:
        batch = nn.utils.rnn.pad_sequence(rows, batch_first=True) if padded else torch.stack(rows)
        return batch.to(self.device, torch.float32 if batch.is_floating_point() else batch.dtype)


def _named(text: str) -> str:
    return repr(text if len(text) <= NAMED else text[:NAMED] + "...")


def _read(path: Path) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, str]]:
    """The tensors of each text, and what was read of those that were cut off."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file of encoded texts: {path}; write one by EncodedTexts.save(encoder, texts, path)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            texts, kept = json.loads(metadata["texts"]), json.loads(metadata.get("kept", "{}"))
            encoded: dict[str, dict[str, Tensor]] = {text: {} for text in texts}
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                index, _, name = key.partition(".")
                encoded[texts[int(index)]][name] = file.get_tensor(key)
    except (SafetensorError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} was not written by EncodedTexts.save ({first_line(error)})") from error
    return dict(encoded), kept
