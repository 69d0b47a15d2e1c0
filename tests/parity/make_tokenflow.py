"""Writes data/tokenflow_*.pt with the public TokenFlow code: `python make_tokenflow.py <checkout of ByteVisionLab/TokenFlow>`.

Needs torch, transformers 4.43.4, setuptools < 70 and einops. Made at commit 9812da0 with torch 2.13.0 on a CPU.
The public constructors of the tokenizer fix its size and download CLIP, so that its parts are put together here at a small size;
everything that computes is the public code's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import transformers  # noqa: F401  (before its optional parts are replaced below)
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
PUBLIC = Path(sys.argv[1]).resolve()
sys.path[:0] = [str(PUBLIC / "t2i"), str(PUBLIC / "tokenflow"), str(HERE.parent)]
# Imported by the public code, and used by nothing that runs here; the vocabulary of CLIP's texts is not in its repository either.
UNUSED = ("timm", "timm.models", "timm.models.layers", "torchvision", "torchvision.transforms", "tokenizer.clip.simple_tokenizer")
sys.modules.update({name: MagicMock() for name in UNUSED})

from llava_t2i.model.language_model import llava_llama  # noqa: E402
from llava_t2i.model.multimodal_encoder import vision_tokenizer  # noqa: E402
from parity.rules import TOKENIZER, TRANSFORMER, abridged, layout, log_probs_of, picture, ramped, weights  # noqa: E402
from tokenizer import vq_model  # noqa: E402
from tokenizer.clip.model import VisionTransformer  # noqa: E402

SHARED: dict[str, Any] = {
    "sides": (1, 2, 4),
    "vocab_size": 48,
    "halves": (6, 4),
    "text_tokens": 20,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "mm_projector_type": "mlp2x_gelu",
    "decoder_blocks": 1,
    "tower_side": 4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    # TinyLlama, which the training script names too, groups its heads. The tower's positions are interpolated here.
    "grouped": {
        "num_key_value_heads": 2,
        "mm_projector_type": "linear",
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-2,
        "decoder_blocks": 2,
        "tower_side": 3,
        "sides": (1, 2, 3, 4),
    },
}
PAD, BEGIN = 2, 1
CONTEXT = 12
"""Text tokens after padding; 128 in the published script."""
TEXTS = ([BEGIN, 7, 8, 9, 10, 11], [BEGIN, 12, 5], [BEGIN, 6, 7, 14, 15, 16, 17, 18, 9, 10, 11, 13])
NEGATIVE = [BEGIN, 17, 5, 4, 8]
BEGIN_OF_IMAGE = [3, 4]
# (seed, cfg, top_k, top_p): no guidance; guidance alone; all of it.
CASES = ((7, 0.0, 0, 0.0), (8, 3.0, 0, 0.0), (9, 3.0, 20, 0.6))


def build_tokenizer(config: dict[str, Any]) -> nn.Module:
    semantic, pixel = config["halves"]
    tokenizer = vq_model.TokenFlow.__new__(vq_model.TokenFlow)
    nn.Module.__init__(tokenizer)
    multipliers, middle, width = (1, 2), 24, 128
    tokenizer.encoder = vq_model.Encoder(ch=32, ch_mult=multipliers, num_res_blocks=1, z_channels=middle)
    tokenizer.decoder = vq_model.Decoder(ch=32, ch_mult=multipliers, num_res_blocks=config["decoder_blocks"], z_channels=middle)
    tokenizer.quant_conv, tokenizer.post_quant_conv = nn.Conv2d(middle, pixel, 1), nn.Conv2d(pixel, middle, 1)
    tokenizer.encoder_vqkd = VisionTransformer(2 * config["tower_side"], 2, width, 2, width // 64, 8)
    del tokenizer.encoder_vqkd.proj
    tokenizer.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, semantic))
    tokenizer.quantize = vq_model.VectorQuantizer(
        config["vocab_size"], semantic + pixel, 1.0, 0.0, l2_norm=True, show_usage=False, split=[semantic, pixel]
    )
    tokenizer.teacher, tokenizer.enable_var, tokenizer.using_shared_conv = "clipb_224", True, False
    tokenizer.scale_rq_layers, tokenizer.random_scale_drop = list(config["sides"]), False
    tokenizer.semantic_code_dim, tokenizer.vqgan_code_dim, tokenizer.embed_dim = semantic, pixel, semantic + pixel
    tokenizer.decoder_vqkd = lambda quant, **_: quant  # of CLIP features: no image is made of it
    tokenizer.decode_task_layer = lambda features: features
    tokenizer.load_state_dict(weights(layout(tokenizer.state_dict()), TOKENIZER))
    return tokenizer.eval().requires_grad_(False)


def build(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    tokenizer = build_tokenizer(config)
    vision_tokenizer.tokenflow_model = lambda *_, **__: tokenizer
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    public = llava_llama.LlavaConfig(
        **{name: config[name] for name in names},
        rope_theta=config["rope_theta"],
        vocab_size=config["text_tokens"] + config["vocab_size"],
        attn_implementation="eager",
    )
    public.mm_vision_tower, public.mm_vision_vq_type = __file__, "TOKEN_FLOW"
    public.mm_projector_type, public.tokenizer_model_max_length = config["mm_projector_type"], 64
    model = llava_llama.LlavaLlamaForCausalLM(public)
    model.load_state_dict(weights(layout(model.state_dict()), TRANSFORMER))
    model.pad_token_id, model.image_token_start = PAD, config["text_tokens"]
    return tokenizer, model.eval()


def prefixes(rows: list[list[int]]) -> list[Tensor]:
    """What the published script makes of texts' ids: padded on the left, then the begin of the image."""
    return [torch.tensor([PAD] * (CONTEXT - len(row)) + row + BEGIN_OF_IMAGE) for row in rows]


def halves() -> list[Tensor]:
    return prefixes(list(TEXTS)) + prefixes([NEGATIVE] * len(TEXTS))


@torch.no_grad()
def sample(model: nn.Module, sides: tuple[int, ...], seed: int, cfg: float, top_k: int, top_p: float) -> dict[str, Any]:
    tokens: list[Tensor] = []
    images: list[Tensor] = []
    draw, tower = llava_llama.sample_with_top_k_top_p_, model.get_vision_tower()
    decode = tower.decode_to_img_pt

    def recording(logits: Tensor, **options: Any) -> Tensor:
        drawn = draw(logits, **options)
        tokens.append(drawn[:, :, 0] - model.image_token_start)
        return drawn

    def recorded(codes: Tensor) -> Tensor:
        images.append(decode(codes))
        return images[-1]

    llava_llama.sample_with_top_k_top_p_, tower.decode_to_img_pt = recording, recorded
    model.autoregressive_infer_cfg(len(TEXTS), halves(), g_seed=seed, cfg=cfg, topk_list=[top_k], topp_list=[top_p])
    llava_llama.sample_with_top_k_top_p_, tower.decode_to_img_pt = draw, decode
    assert [t.shape[1] for t in tokens] == [n * n for n in sides]
    return {"seed": seed, "cfg": cfg, "top_k": top_k, "top_p": top_p, "tokens": tokens, "images": (images[0] + 1) / 2}


def logits_of(model: nn.Module, codes: list[Tensor], tokens: list[Tensor]) -> Tensor:
    """Teacher-forced logits of all visual positions over the visual vocabulary, (rows, L, V)."""
    drawn = torch.cat(tokens, dim=1) + model.image_token_start
    length, start = drawn.shape[1], len(codes[0])
    rows = [torch.cat((prefix, drawn[i % len(drawn)])) for i, prefix in enumerate(codes)]
    places = [torch.arange(start, start + length) for _ in rows]
    embedded, mask, _ = model.prepare_generation_inputs(rows, img_ind_list=places, padding_value=model.image_token_start + 1)
    stop = start + length - 1
    mask = mask[:, :, :stop, :stop]
    logits = model(inputs_embeds=embedded[:, :stop], attention_mask=mask, use_cache=False, return_dict=False)[0]
    return logits[:, start - 1 :, model.image_token_start :]


def gradients(model: nn.Module, value: Tensor) -> dict[str, dict[str, Any]]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, retain_graph=True)
    return {name: abridged(gradient) for name, gradient in zip(names, found, strict=True)}


def teach(model: nn.Module, case: dict[str, Any], sides: tuple[int, ...]) -> dict[str, Any]:
    cond, uncond = logits_of(model, halves(), case["tokens"]).chunk(2)
    guided = ramped(cond, uncond, (case["cfg"],) * len(sides), sides)
    log_prob = log_probs_of(cond, case["tokens"])
    print(f"  logits up to {cond.abs().max():.2f}, log-probs {log_prob.min():.1f} to {log_prob.max():.2f}")
    return {
        "cond": cond.detach(),
        "uncond": uncond.detach(),
        "log_prob": log_prob.detach(),
        "gradients": gradients(model, log_prob.mean()),
        "guided_gradients": gradients(model, log_probs_of(guided, case["tokens"]).mean()),
    }


@torch.no_grad()
def tokenize(tokenizer: nn.Module, sides: tuple[int, ...]) -> dict[str, Any]:
    image = picture(2, 2 * sides[-1])
    codes = tokenizer.encode(2 * image - 1)[2]
    decoded = []
    for m in range(1, len(sides) + 1):
        decoded.append((tokenizer.decode_code(codes[:, : sum(n * n for n in sides[:m])])[1] + 1) / 2)
    print(f"  {len(set(codes.flatten().tolist()))} codes used, images std {decoded[-1].std():.2f}")
    return {"codes": codes, "decoded": decoded}


def main() -> None:
    torch.set_num_threads(1)
    for name, changes in VARIANTS.items():
        config = SHARED | changes
        print(name)
        tokenizer, model = build(config)
        cases = [sample(model, config["sides"], *case) for case in CASES]
        data = {
            "config": config,
            "texts": [row + BEGIN_OF_IMAGE for row in TEXTS],
            "negative": NEGATIVE + BEGIN_OF_IMAGE,
            "layouts": {"transformer": layout(model.state_dict()), "tokenizer": layout(tokenizer.state_dict())},
            "sampling": cases,
            "teacher": teach(model, cases[-1], config["sides"]),
            "tokenizer": tokenize(tokenizer, config["sides"]),
        }
        path = HERE / "data" / f"tokenflow_{name}.pt"
        torch.save(data, path)
        print(f"  {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
