"""What the public Infinity code computes from seeded weights: `python make_infinity.py <checkout> [variant ...]`, into `data/`.

Made at commit 4c27bbb with torch 2.13.0 on a CPU. Needs torch, numpy, einops, tqdm and Pillow; all else that the public code
imports is replaced here. Where it would round (cross-attention in bf16), overwrite its arguments (condition dropout) or rotate by
the wrong positions (RoPE with a cache, unless the norm is the fused one), it is led around that, so that the files hold the
formulas' values.

Rules on top of `seeded`: `scale_mul_1H11` is log 4 + 0.3 z, its first entry in the first block 5 (above the clamp at log 100);
`ca_gamma` is 0.5 + 0.3 z; AdaLN is halved; the buffers `zero_k_bias`, `ln_wo_grad.weight` and `mask` stay what they are.
"""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parity.seeded import seeded

LENS, NEGATIVE_LENS, TEXT_CHANNELS, TEXT_MAXLEN, SEED = [5, 9], [7, 3], 256, 16, 5
BASE = {
    "ratio": 1.0,
    "scales": 5,
    "bits": 8,
    "patchify": 0,
    "heads": 2,
    "depth": 4,
    "block_chunks": 2,
    "first_block_only": 1,
    "rope": 2,
    "shared_aln": True,
    "extra": {},
}
VARIANTS = {
    "published_2b": {"scales": 6},
    "own_aln_every_chunk": {"shared_aln": False, "first_block_only": 0, "block_chunks": 4, "rope": 0},
    "portrait": {"ratio": 1.5, "rope": 1, "block_chunks": 2, "scales": 6},
    "landscape": {"ratio": 0.666, "first_block_only": 0, "scales": 6},
    "published_8b": {"patchify": 1, "bits": 4},
    "one_chunk": {"block_chunks": 1, "first_block_only": 0, "rope": 0},
    "swiglu": {"extra": {"swiglu": True, "cos_attn": False, "cross_attn_layer_scale": 0.5, "head_depth": 2}},
    "rms": {"shared_aln": False, "extra": {"rms_norm": True, "nm0": True}},
    "plain_head": {"extra": {"head_aln": False, "nm0": True}},
    "plain_deep_head": {"extra": {"head_aln": False, "head_depth": 2, "rms_norm": True, "swiglu": True}},
}
CASES = {
    "plain": {"cfg": 1.0, "tau": 1.0, "top_p": 0.0, "generator": 1},
    "guided": {"cfg": 3.0, "tau": 0.5, "top_p": 0.0, "generator": 2},
    "truncated": {"cfg": 4.0, "tau": 0.5, "top_p": 0.97, "generator": 3},
    "per_scale": {"cfg": [1.0, 4.0, 3.0, 2.0, 1.5, 1.0], "tau": [0.5, 0.7, 0.8, 1.0, 1.1, 1.2], "top_p": 0.9, "generator": 4},
    "negative": {"cfg": 3.0, "tau": 1.0, "top_p": 0.0, "generator": 5},
}


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """`seeded` with the rules above."""
    x = seeded(name, shape, SEED)
    if name.endswith("scale_mul_1H11"):
        x = x + math.log(4)
        if ".0.sa." in name and (".0.module.0." in name or name.startswith("blocks.0.")):
            x.view(-1)[0] = 5.0
    if name.endswith("ca_gamma"):
        x = x + 0.5
    return x / 2 if "ada_lin" in name or "ada_gss" in name else x


def state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A whole published file, constants included, from the shapes that were stored."""
    constants = {"zero_k_bias": torch.zeros, "ln_wo_grad.weight": torch.ones}
    made = {}
    for name, shape in shapes.items():
        constant = next((make for ending, make in constants.items() if name.endswith(ending)), None)
        if name.endswith("lfq.mask"):
            made[name] = 2 ** torch.arange(shape[0] - 1, -1, -1)
        else:
            made[name] = weight(name, tuple(shape)) if constant is None else constant(shape)
    return made


def fill(module: nn.Module) -> dict[str, list[int]]:
    """Seed a module's parameters; the shapes of all that its state dict holds."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weight(name, tuple(parameter.shape)))
    return {name: list(x.shape) for name, x in module.state_dict().items()}


def attention(q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, softmax_scale: float, **_: Any) -> Tensor:
    """Attention of packed sequences, one after the other, in the dtype of its arguments."""
    parts = []
    for i in range(len(cu_seqlens_k) - 1):
        rows = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]].transpose(0, 1)  # (heads, n, d)
        k, v = kv[cu_seqlens_k[i] : cu_seqlens_k[i + 1]].permute(1, 2, 0, 3)
        parts.append(F.scaled_dot_product_attention(rows, k, v, scale=softmax_scale).transpose(0, 1))
    return torch.cat(parts)


class Anything(types.ModuleType):
    """A module of which any name can be imported."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda f=None, *args, **kwargs: f


class Float32Torch:
    """torch, except that what is rounded to bf16 stays fp32."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def import_public(checkout: str) -> Any:
    """The public modules, with stand-ins for what they import."""
    sys.path.insert(0, checkout)
    for name in ("imageio", "pytz", "torchvision", "timm", "timm.models", "timm.loss", "timm.models.layers", "flash_attn"):
        sys.modules[name] = Anything(name)
    sys.modules["timm.models.layers"].DropPath = type("DropPath", (nn.Module,), {})
    sys.modules["timm.loss"].SoftTargetCrossEntropy = type("SoftTargetCrossEntropy", (nn.Module,), {})
    sys.modules["flash_attn"].flash_attn_func = lambda q, k, v: None
    sys.modules["flash_attn"].flash_attn_varlen_kvpacked_func = attention
    for name in ("flash_attn.ops.layer_norm", "flash_attn.ops"):
        sys.modules[name] = None  # the fused kernels are not there
    torch.compile = lambda *args, **kwargs: lambda f: f  # type: ignore[assignment]
    from infinity.models import basic, infinity
    from infinity.models.bsq_vae import vae

    basic.torch = Float32Torch()
    return types.SimpleNamespace(infinity=infinity, vae=vae)


def build_vae(public: Any, variant: dict[str, Any]) -> Any:
    """A thin VAE with one block per level."""

    def thin(args: Any, auto_encoder: Any = public.vae.AutoEncoder) -> Any:
        args.base_ch, args.num_res_blocks = 32, 1
        return auto_encoder(args)

    original, public.vae.AutoEncoder = public.vae.AutoEncoder, thin
    mult = [1, 2, 2, 2] if variant["patchify"] else [1, 1, 2, 2, 2]
    patch = 8 if variant["patchify"] else 16
    d = variant["bits"]
    built = public.vae.vae_model({}, "dynamic", d, 2**d, patch_size=patch, encoder_ch_mult=mult, decoder_ch_mult=mult)
    public.vae.AutoEncoder = original
    return built


def build(public: Any, variant: dict[str, Any], vae: Any, fused: bool = True) -> Any:
    """The public transformer; its RoPE table also knows the first few scales of its schedule."""
    model = public.infinity.Infinity(
        vae,
        text_channels=TEXT_CHANNELS,
        text_maxlen=TEXT_MAXLEN,
        embed_dim=64,
        depth=variant["depth"],
        num_heads=variant["heads"],
        shared_aln=variant["shared_aln"],
        cond_drop_rate=0.0,
        block_chunks=variant["block_chunks"],
        add_lvl_embeding_only_first_block=variant["first_block_only"],
        rope2d_each_sa_layer=1,
        rope2d_normalized_by_hw=variant["rope"],
        apply_spatial_patchify=variant["patchify"],
        fused_norm=fused,
        inference_mode=True,
        **variant["extra"],
    ).eval()
    grids = [(1, h, w) for _, h, w in public.infinity.dynamic_resolution_h_w[variant["ratio"]]["1M"]["scales"]]
    for m in range(1, 13):
        model.rope2d_freqs_grid[str(tuple(grids[:m]))] = model.rope2d_freqs_grid[str(tuple(grids))]
    model.grids = grids[: variant["scales"]]
    return model


def packed(name: str, lens: list[int]) -> tuple[Tensor, list[int], Tensor, int]:
    """Seeded text features in the form that the public code takes."""
    cumulative = torch.tensor([0, *lens]).cumsum(0).to(torch.int32)
    return seeded(name, (sum(lens), TEXT_CHANNELS), SEED) * 3, list(lens), cumulative, max(lens)


def flat(bits: Tensor, patchify: int) -> Tensor:
    """Bits (R, 1, h, w, d) of a scale as tokens (R, n, bits)."""
    x = bits.squeeze(1).permute(0, 3, 1, 2)
    if patchify:
        x = F.pixel_unshuffle(x.float(), 2)
    return x.flatten(2).transpose(1, 2).to(torch.uint8)


def sample(model: Any, vae: Any, case: dict[str, Any], negative: bool, patchify: int) -> dict[str, Any]:
    """One run of the public sampler and what passed through it."""
    tokens, inputs, latents, images = [], [], [], []
    lfq, original = vae.quantizer.lfq, vae.quantizer.lfq.indices_to_codes

    def spy(indices: Tensor, label_type: str) -> Tensor:
        tokens.append(flat(indices, patchify))
        return original(indices, label_type=label_type)

    def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        latents.append(args[0].clone())
        images.append(out.clamp(-1, 1))

    lfq.indices_to_codes = spy
    hooks = [
        model.norm0_ve.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone())),
        vae.decoder.register_forward_hook(keep),
    ]
    scales = len(model.grids)
    cfg, tau = (x[:scales] if isinstance(x, list) else [x] * scales for x in (case["cfg"], case["tau"]))
    text, lens, cumulative, longest = packed("text", LENS)
    model.autoregressive_infer_cfg(
        vae=vae,
        scale_schedule=model.grids,
        label_B_or_BLT=(text, lens, cumulative, longest),
        B=len(LENS),
        negative_label_B_or_BLT=packed("negative", NEGATIVE_LENS) if negative else None,
        g_seed=case["generator"],
        cfg_list=cfg,
        tau_list=tau,
        top_k=0,
        top_p=case["top_p"],
        cfg_insertion_layer=[0],
        vae_type=1,
        returns_vemb=1,
        ret_img=True,
        inference_mode=True,
    )
    for hook in hooks:
        hook.remove()
    lfq.indices_to_codes = original
    return {"tokens": tokens, "inputs": torch.cat(inputs, dim=1), "latent": latents[0], "image": (images[0] + 1) / 2}


def teacher_forced(model: Any, inputs: Tensor, name: str, lens: list[int], scales: int, drop: bool = False) -> Tensor:
    """Logits (R, L, 2 * bits) of the public training pass; `drop` puts the learned unconditional text in place of the prompt's."""
    model.cond_drop_rate = 2.0 if drop else 0.0
    grids = model.grids[:scales]
    length = sum(h * w for _, h, w in grids)
    logits: Tensor = model(packed(name, lens), inputs[:, : length - 1], grids)
    return logits


def bit_log_probs(logits: Tensor, tokens: list[Tensor]) -> Tensor:
    """Log-probabilities (R, L, bits) of the tokens."""
    bits = torch.cat(tokens, dim=1).long()
    return logits.unflatten(-1, (-1, 2)).log_softmax(-1).gather(-1, bits.unsqueeze(-1)).squeeze(-1)


def gradients(model: Any, run: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Of a weighted sum of guided log-probabilities (cfg 3, tau 0.5): each parameter's norm and first 64 entries."""
    cond, uncond = (teacher_forced(model, run["inputs"], "text", LENS, len(model.grids), drop) for drop in (False, True))
    guided = bit_log_probs((3 * cond - 2 * uncond) / 0.5, run["tokens"])
    model.zero_grad()
    (guided.sum(-1) * seeded("loss", guided.shape[:2], SEED)).sum().backward()
    return {
        name: {"norm": p.grad.norm(), "first": p.grad.flatten()[:64].clone()}
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def encoded(vae: Any, model: Any, patchify: int) -> list[Tensor]:
    """Tokens of a seeded image, by the public tokenizer."""
    zoom = 2 if patchify else 1
    grids = [(1, zoom * h, zoom * w) for _, h, w in model.grids]
    height, width = (16 * x for x in model.grids[-1][1:])
    image = seeded("image", (2, 3, height, width), SEED).clamp(-1, 1)
    return [flat(bits, patchify) for bits in vae.encode(image, grids)[3]]


def record(public: Any, name: str) -> dict[str, Any]:
    """Everything that is stored of one variant."""
    variant = BASE | VARIANTS[name]
    vae = build_vae(public, variant)
    vae_shapes = fill(vae)
    model = build(public, variant, vae)
    shapes = fill(model)
    out: dict[str, Any] = {
        "variant": variant,
        "grids": [list(grid[1:]) for grid in model.grids],
        "shapes": shapes,
        "vae_shapes": vae_shapes,
        "cases": {},
    }
    names = list(CASES) if name in ("published_2b", "published_8b") else ["guided"]
    if variant["block_chunks"] > 1:
        for case in names:
            run = sample(model, vae, CASES[case], case == "negative", variant["patchify"])
            out["cases"][case] = CASES[case] | {"tokens": run["tokens"]}
            if case == "guided":
                guided = run
        out["latent"], out["crop"] = guided["latent"], guided["image"][:, :, 8:40, 16:48].clone()
        out["encoded"] = encoded(vae, model, variant["patchify"])
    else:  # the public sampler needs chunks
        other = build(public, variant | {"block_chunks": 2}, vae)
        fill(other)
        guided = sample(other, vae, CASES["guided"], False, variant["patchify"])
    out["tokens"] = guided["tokens"]
    scales = len(model.grids)
    with torch.no_grad():
        cond = teacher_forced(model, guided["inputs"], "text", LENS, scales)
        uncond = teacher_forced(model, guided["inputs"], "text", LENS, scales, drop=True)
        out |= {"cond": cond, "uncond": uncond, "bit_log_prob": bit_log_probs(cond, guided["tokens"])}
        out["negative"] = teacher_forced(model, guided["inputs"], "negative", NEGATIVE_LENS, scales)[:, :5].clone()
        out["prefix"] = teacher_forced(model, guided["inputs"], "text", LENS, 3)
    out["gradients"] = gradients(model, guided)
    return out


def positions(public: Any) -> dict[int, list[dict[str, Any]]]:
    """Cosines and sines at the middle and the last place of each scale, for every normalisation and aspect ratio."""
    tables: dict[int, list[dict[str, Any]]] = {}
    for normalisation in (0, 1, 2):
        resolutions = public.infinity.dynamic_resolution_h_w
        whole = public.infinity.precompute_rope2d_freqs_grid(32, resolutions, normalisation)
        tables[normalisation] = []
        for ratio in resolutions:
            grids = [(1, h, w) for _, h, w in resolutions[ratio]["1M"]["scales"]]
            ends = torch.tensor([h * w for _, h, w in grids]).cumsum(0)
            middles = ends - torch.tensor([(h * w + 1) // 2 for _, h, w in grids])
            places = torch.stack((middles, ends - 1), dim=1).flatten()
            table = whole[str(tuple(grids))][:, 0, 0, 0][:, places].clone()
            tables[normalisation].append({"grids": [list(grid[1:]) for grid in grids], "places": places, "table": table})
    return tables


if __name__ == "__main__":
    public = import_public(sys.argv[1])
    torch.set_num_threads(1)
    torch.save(positions(public), Path(__file__).resolve().parent / "data" / "rope_infinity.pt")
    for variant in sys.argv[2:] or VARIANTS:
        result = record(public, variant)
        path = Path(__file__).resolve().parent / "data" / f"infinity_{variant}.pt"
        torch.save(result, path)
        print(f"{path.name}: {path.stat().st_size} bytes, largest logit {result['cond'].abs().max():.2f}")
