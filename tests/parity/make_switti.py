"""Writes data/switti_*.pt with the public Switti code: `python make_switti.py <checkout of yandex-research/switti>`.

Needs what its models import: torch, torchvision, transformers, diffusers 0.31, einops, huggingface_hub, typed-argument-parser and
pytz. No text encoder is run: prompts have the made-up features of `rules.encoded`. It has to be run inside a git repository, since
the public code asks git for its branch. Made at commit 3b286b5 with torch 2.13.0 on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [sys.argv[1], str(HERE.parent)]

from models import pipeline as public_pipeline  # noqa: E402
from models.switti import Switti  # noqa: E402
from models.vqvae import VQVAE  # noqa: E402
from parity.rules import (  # noqa: E402
    TOKENIZER,
    TRANSFORMER,
    abridged,
    encoded,
    layout,
    log_probs_of,
    ramped,
    weights,
    window,
)

SHARED: dict[str, Any] = {
    "V": 64,
    "Cvae": 8,
    "ch": 32,
    "depth": 3,
    "embed_dim": 64,
    "num_heads": 4,
    "patch_nums": (1, 2, 3, 4, 6),
    "rope": True,
    "rope_theta": 10000,
    "rope_size": 128,
    "use_swiglu_ffn": True,
    "use_crop_cond": True,
    "use_ar": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "ar": {"use_ar": True},
    "no_crop": {"use_crop_cond": False},
    "ar_absolute": {"rope": False, "use_ar": True},
    "gelu": {"use_swiglu_ffn": False},
    "other_rope": {"rope_theta": 100, "rope_size": 16, "patch_nums": (1, 2, 3, 4, 5, 7), "use_crop_cond": False},
}
# What all tokens have in common would drown what is their own, and guidance would draw one code everywhere.
FACTORS = {"word_embed.weight": 10.0, "*.ada_lin.*.weight": 0.5, "text_pooler.*": 0.3, "*.bias": 0.2}
PROMPTS, NULL = ("a fox in the snow", "two red cups"), ""
CASES: tuple[dict[str, Any], ...] = (
    {"seed": 7, "cfg": 0.0, "top_k": 0, "top_p": 0.0},
    {"seed": 8, "cfg": 2.0, "top_k": 20, "top_p": 0.9},
    {
        "seed": 9,
        "cfg": 3.0,
        "top_k": 30,
        "top_p": 0.95,
        "turn_on_cfg_start_si": 2,
        "turn_off_cfg_start_si": 4,
        "last_scale_temp": 0.5,
    },
)
LARGE = (768, 512)
"""Height and width for which the crop condition is not [512, 512, 0, 0]."""


def build(config: dict[str, Any]) -> tuple[VQVAE, Switti]:
    sides = config["patch_nums"]
    tokenizer = VQVAE(config["V"], config["Cvae"], config["ch"], v_patch_nums=sides)
    model = Switti(**{key: value for key, value in config.items() if key != "ch"})
    tokenizer.load_state_dict(weights(layout(tokenizer.state_dict()), TOKENIZER))
    model.load_state_dict(weights(layout(model.state_dict(), FACTORS), TRANSFORMER))
    return tokenizer.eval(), model.eval()


def features(texts: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    found = [encoded(text) for text in texts]
    mask = torch.stack([x["mask"] for x in found])
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return torch.stack([x["text"] for x in found]), torch.stack([x["pooled"] for x in found]), bias


def sample(model: Switti, tokenizer: VQVAE, case: dict[str, Any]) -> dict[str, Any]:
    guided: list[Tensor] = []
    tokens: list[Tensor] = []
    draw = public_pipeline.sample_with_top_k_top_p_

    def recording(logits: Tensor, **options: Any) -> Tensor:
        guided.append(logits.clone())
        drawn = draw(logits, **options)
        tokens.append(drawn[:, :, 0].clone())
        return drawn

    pipeline = public_pipeline.SwittiPipeline(model, tokenizer, nn.Identity(), nn.Identity(), "cpu")
    pipeline.encode_prompt = lambda prompt, null: features(PROMPTS + (NULL,) * len(PROMPTS))
    public_pipeline.sample_with_top_k_top_p_ = recording
    image = pipeline(list(PROMPTS), return_pil=False, **case)
    public_pipeline.sample_with_top_k_top_p_ = draw
    return case | {
        "tokens": tokens,
        "guided": {si: guided[si] for si in (1, len(guided) - 2, len(guided) - 1)},
        "all_guided": torch.cat(guided, dim=1),
        "image": window(image),
    }


def strengths(case: dict[str, Any], scales: int) -> tuple[float, ...]:
    on, off = case.get("turn_on_cfg_start_si", 0), case.get("turn_off_cfg_start_si", scales)
    return tuple(case["cfg"] if on <= si < off else 0.0 for si in range(scales))


def teach(model: Switti, tokenizer: VQVAE, cases: list[dict[str, Any]], sides: tuple[int, ...]) -> dict[str, Any]:
    case = cases[1]
    inputs = tokenizer.quantize.idxBl_to_switti_input(case["tokens"])
    size = {"batch_height": [512, 512], "batch_width": [512, 512]}
    cond = model(inputs, *features(PROMPTS), **size)
    uncond = model(inputs, *features((NULL,) * len(PROMPTS)), **size)
    guided = ramped(cond, uncond, strengths(case, len(sides)), sides)
    noise = (guided - case["all_guided"]).abs().max() / guided.abs().max()
    log_prob = log_probs_of(cond, case["tokens"])
    codes = [sum(len(x.unique()) for x in case["tokens"]) for case in cases]
    print(f"  {codes} codes in {len(torch.cat(case['tokens'], dim=1)[0])} places, tokens' own {cond.std(dim=1).mean():.2f}")
    print(f"  logits up to {cond.abs().max():.2f}, log-probs {log_prob.min():.1f} to {log_prob.max():.2f}, cached {noise:.1e}")
    found = {
        "case": 1,
        "cond": cond.detach(),
        "uncond": uncond.detach(),
        "log_prob": log_prob.detach(),
        "gradients": gradients(model, log_prob.mean()),
        "guided_gradients": gradients(model, log_probs_of(guided, case["tokens"]).mean()),
    }
    if model.use_crop_cond:
        large = model(inputs, *features(PROMPTS), batch_height=[LARGE[0]] * 2, batch_width=[LARGE[1]] * 2)
        print(f"  a crop moves logits by {(large - cond).abs().max():.2f}")
        found |= {"large": LARGE, "large_cond": large.detach()}
    return found


def gradients(model: Switti, value: Tensor) -> dict[str, dict[str, Any]]:
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(value, parameters, retain_graph=True)
    return {name: abridged(gradient) for name, gradient in zip(names, found, strict=True)}


def main() -> None:
    torch.set_num_threads(1)
    for name, changes in VARIANTS.items():
        config = SHARED | changes
        tokenizer, model = build(config)
        print(name)
        # The public code cannot switch guidance off without rotary embeddings: it slices their absent table.
        cases = [sample(model, tokenizer, case) for case in CASES if config["rope"] or "turn_off_cfg_start_si" not in case]
        data = {
            "config": config,
            "prompts": PROMPTS,
            "layouts": {"transformer": layout(model.state_dict(), FACTORS), "tokenizer": layout(tokenizer.state_dict())},
            "teacher": teach(model, tokenizer, cases, config["patch_nums"]),
            "sampling": [{key: value for key, value in case.items() if key != "all_guided"} for case in cases],
        }
        path = HERE / "data" / f"switti_{name}.pt"
        torch.save(data, path)
        print(f"  {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
