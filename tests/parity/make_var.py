"""Writes data/var_*.pt with the public VAR code: `python make_var.py <checkout of FoundationVision/VAR>`.

Needs torch, numpy and huggingface_hub. Made at commit 78b9539 with torch 2.13.0 on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [sys.argv[1], str(HERE.parent)]

from models import var as public_var  # noqa: E402
from models.vqvae import VQVAE  # noqa: E402
from parity.rules import (  # noqa: E402
    TOKENIZER,
    TRANSFORMER,
    abridged,
    layout,
    log_probs_of,
    picture,
    ramped,
    weights,
    window,
)

SHARED: dict[str, Any] = {
    "V": 64,
    "Cvae": 8,
    "ch": 32,
    "num_classes": 10,
    "depth": 3,
    "embed_dim": 64,
    "num_heads": 4,
    "patch_nums": (1, 2, 3, 4, 6),
    "share_quant_resi": 4,
    "attn_l2_norm": False,
    "shared_aln": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "l2norm": {"attn_l2_norm": True},
    "shared_aln": {"shared_aln": True},
    "l2norm_shared_aln": {"attn_l2_norm": True, "shared_aln": True},
    "six_scales": {"attn_l2_norm": True, "patch_nums": (1, 2, 3, 4, 5, 7)},
    "one_phi": {"share_quant_resi": 1},
    "phi_per_scale": {"share_quant_resi": 0},
}
LABELS = (3, 7)
# (seed, cfg, top_k, top_p): no guidance; guidance alone; all of it.
CASES = ((7, 0.0, 0, 0.0), (8, 4.0, 0, 0.0), (9, 4.0, 20, 0.9))


def build(config: dict[str, Any]) -> tuple[VQVAE, public_var.VAR]:
    tokenizer = VQVAE(
        config["V"], config["Cvae"], config["ch"], share_quant_resi=config["share_quant_resi"], v_patch_nums=config["patch_nums"]
    )
    keys = ("num_classes", "depth", "embed_dim", "num_heads", "shared_aln", "attn_l2_norm", "patch_nums")
    model = public_var.VAR(tokenizer, **{key: config[key] for key in keys}, cond_drop_rate=0.0)
    tokenizer.load_state_dict(weights(layout(tokenizer.state_dict()), TOKENIZER))
    model.load_state_dict(weights(layout(model.state_dict()), TRANSFORMER))
    return tokenizer.eval(), model.eval()


def sample(model: public_var.VAR, seed: int, cfg: float, top_k: int, top_p: float) -> dict[str, Any]:
    guided: list[Tensor] = []
    tokens: list[Tensor] = []
    draw = public_var.sample_with_top_k_top_p_

    def recording(logits: Tensor, **options: Any) -> Tensor:
        guided.append(logits.clone())
        drawn = draw(logits, **options)
        tokens.append(drawn[:, :, 0].clone())
        return drawn

    public_var.sample_with_top_k_top_p_ = recording
    image = model.autoregressive_infer_cfg(len(LABELS), torch.tensor(LABELS), g_seed=seed, cfg=cfg, top_k=top_k, top_p=top_p)
    public_var.sample_with_top_k_top_p_ = draw
    return {
        "seed": seed,
        "cfg": cfg,
        "top_k": top_k,
        "top_p": top_p,
        "tokens": tokens,
        "guided": {si: guided[si] for si in (1, len(guided) - 2)},
        "all_guided": torch.cat(guided, dim=1),
        "image": window(image),
    }


def teach(model: public_var.VAR, tokenizer: VQVAE, case: dict[str, Any], sides: tuple[int, ...]) -> dict[str, Any]:
    inputs = tokenizer.quantize.idxBl_to_var_input(case["tokens"])
    labels = torch.tensor(LABELS)
    cond = model(labels, inputs)
    uncond = model(torch.full_like(labels, model.num_classes), inputs)
    guided = ramped(cond, uncond, (case["cfg"],) * len(sides), sides)
    noise = (guided - case["all_guided"]).abs().max() / guided.abs().max()
    log_prob = log_probs_of(cond, case["tokens"])
    print(f"  logits up to {cond.abs().max():.2f}, log-probs {log_prob.min():.1f} to {log_prob.max():.2f}, cached {noise:.1e}")
    return {
        "case": CASES.index((case["seed"], case["cfg"], case["top_k"], case["top_p"])),
        "cond": cond.detach(),
        "uncond": uncond.detach(),
        "log_prob": log_prob.detach(),
        "gradients": gradients(model, log_prob.mean()),
        "guided_gradients": gradients(model, log_probs_of(guided, case["tokens"]).mean()),
        "prefix": prefixes(model, inputs, sides),
    }


def gradients(model: public_var.VAR, value: Tensor) -> dict[str, dict[str, Any]]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, retain_graph=True)
    return {name: abridged(gradient) for name, gradient in zip(names, found, strict=True)}


@torch.no_grad()
def prefixes(model: public_var.VAR, inputs: Tensor, sides: tuple[int, ...]) -> dict[int, Tensor]:
    """Logits of the public code's own truncated pass over scales [0, m)."""
    found = {}
    for m in range(1, len(sides)):
        model.prog_si = m - 1
        stop = sum(n * n for n in sides[:m])
        found[m] = model(torch.tensor(LABELS), inputs[:, : stop - 1])
    model.prog_si = -1
    return found


@torch.no_grad()
def tokenize(tokenizer: VQVAE, sides: tuple[int, ...]) -> dict[str, Any]:
    image = picture(2, 16 * sides[-1])
    tokens = tokenizer.img_to_idxBl(2 * image - 1)
    decoded = tokenizer.idxBl_to_img(tokens, same_shape=True)
    print(f"  {len({v for t in tokens for v in t.flatten().tolist()})} codes used, images std {decoded[-1].std():.2f}")
    return {"tokens": tokens, "decoded": [window((x + 1) / 2) for x in decoded]}


def main() -> None:
    torch.set_num_threads(1)
    for name, changes in VARIANTS.items():
        config = SHARED | changes
        sides = config["patch_nums"]
        tokenizer, model = build(config)
        print(name)
        cases = [sample(model, *case) for case in CASES]
        data = {
            "config": config,
            "labels": torch.tensor(LABELS),
            "layouts": {"transformer": layout(model.state_dict()), "tokenizer": layout(tokenizer.state_dict())},
            "teacher": teach(model, tokenizer, cases[-1], sides),
            "tokenizer": tokenize(tokenizer, sides),
            "sampling": [{key: value for key, value in case.items() if key != "all_guided"} for case in cases],
        }
        path = HERE / "data" / f"var_{name}.pt"
        torch.save(data, path)
        print(f"  {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
