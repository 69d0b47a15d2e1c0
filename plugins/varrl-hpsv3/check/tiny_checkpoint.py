"""Write a random Qwen2-VL of 270,000 parameters, its processor, hpsv3's YAML for it, and the weights of hpsv3's model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2TokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor() -> Any:
    """A byte-level tokenizer without merges, with Qwen2-VL's special tokens and image processor."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = Qwen2TokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token=None)
    fast.add_special_tokens({"additional_special_tokens": SPECIAL})
    # The model has 14-pixel patches, merged 2 x 2: 256 image tokens for 448 x 448 pixels.
    return Qwen2VLProcessor(image_processor=Qwen2VLImageProcessor(), tokenizer=fast, chat_template=CHAT)


def configuration(tokenizer: Any) -> Any:
    """Qwen2-VL's configuration, as small as its rotary embeddings allow."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    return Qwen2VLConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},  # half of a head's 16 numbers
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )


def settings(base: Path) -> dict[str, Any]:
    """hpsv3's published YAML, with our base model for its own."""
    import hpsv3

    published = (Path(hpsv3.__file__).parent / "config" / "HPSv3_7B.yaml").read_text()
    return yaml.safe_load(published) | {"model_name_or_path": str(base)}


def main(folder: Path) -> None:
    """Everything under one folder: `base/`, `published.yaml`, `float32.yaml`, `tiny.safetensors`."""
    from hpsv3.train import create_model_and_processor
    from hpsv3.utils.parser import DataConfig, ModelConfig, PEFTLoraConfig, TrainingConfig, parse_args_with_yaml

    torch.manual_seed(0)
    base = folder / "base"
    made = processor()
    made.save_pretrained(base)
    Qwen2VLForConditionalGeneration(configuration(made.tokenizer)).save_pretrained(base)
    (folder / "published.yaml").write_text(yaml.safe_dump(settings(base)))
    (folder / "float32.yaml").write_text(yaml.safe_dump(settings(base) | {"bf16": False, "torch_dtype": "float32"}))
    classes = (DataConfig, TrainingConfig, ModelConfig, PEFTLoraConfig)
    (_, training, model_config, lora), _ = parse_args_with_yaml(classes, str(folder / "float32.yaml"), is_train=False)
    model, _, _ = create_model_and_processor(model_config=model_config, peft_lora_config=lora, training_args=training)
    with torch.no_grad():
        # Fresh weights of .02 would answer almost the same to everything.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    save_file({name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}, folder / "tiny.safetensors")
    print(f"checkpoint: {sum(p.numel() for p in model.parameters()):,} random parameters in {folder / 'tiny.safetensors'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
