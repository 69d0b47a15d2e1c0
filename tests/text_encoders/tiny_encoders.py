"""Random T5 and CLIP models with tokenizers of a few hundred tokens, in folders as transformers writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)


def write_t5(folder: Path) -> Path:
    """A whole T5 with its decoder, as flan-t5 is published."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([*words, *letters, ("▁cat", -1.5), ("▁the", -1.2)], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=512
    ).save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("TokenizersBackend", "T5Tokenizer"))
    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def write_clip(folder: Path, width: int, seed: int, pad: str, merged: bool) -> Path:
    """A whole CLIP with its image encoder, as CLIP-L and CLIP-bigG are published."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*symbols, *(symbol + "</w>" for symbol in symbols), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [("c", "a"), ("ca", "t</w>")] if merged else []
    CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77).save_pretrained(folder)
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as in the published configurations, wrong as they are
    text = CLIPTextConfig(vocab_size=len(names), **sizes, **ids)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
    torch.manual_seed(seed)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).save_pretrained(folder)
    return folder
