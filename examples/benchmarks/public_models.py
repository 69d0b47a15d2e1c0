"""Peak memory and images per second of a prefix and a suffix stage, for public models at their real sizes with random weights.

    python examples/benchmarks/public_models.py                      # all sizes, on the first GPU
    python examples/benchmarks/public_models.py --models var_d16 --branches 4 --device cpu --dtype float32

A stage is sampled and decoded as in training (sampling with guidance, K = 2 continuations of a prefix), then a loss is
backpropagated through the policy, one micro-batch after the other, with gradient checkpointing. Optimizer, reference and reward are
left out: AdamW adds 12 bytes per trained parameter. Text features are random, 64 tokens of the encoder's width. Prints one row of a
table in Markdown for each stage.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varrl_lightning import VARPolicy
from varrl_lightning.algorithms.stages import cycle
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.policies.infinity import InfinityPolicy
from varrl_lightning.policies.infinity_sizes import Sizes
from varrl_lightning.policies.infinity_transformer import InfinityTransformer
from varrl_lightning.policies.var import ImageNetVARPolicy, VARTransformer
from varrl_lightning.schedule import VAR_256
from varrl_lightning.tokenizers.bsq import BSQTokenizer
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.types import Prompt, Rollout, Stage

TEXT_TOKENS, TEXT_WIDTH = 64, 2048


class RandomFeatures(nn.Module):
    """Random features in place of those of Flan-T5-XL."""

    def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
        text = torch.randn(len(texts), TEXT_TOKENS, TEXT_WIDTH)
        return {"text": text, "mask": torch.ones(text.shape[:2], dtype=torch.bool)}


def filled(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Give a module on `meta` memory and small random weights."""
    module = module.to(dtype).to_empty(device=device)
    for parameter in module.parameters():
        nn.init.normal_(parameter.data, std=1 / math.sqrt(max(parameter.shape[-1], 1)))
    return module


def var(depth: int, device: str, dtype: torch.dtype) -> VARPolicy:
    width = 64 * depth
    with torch.device("meta"):
        transformer = VARTransformer(width=width, depth=depth, heads=depth, hidden=4 * width, gradient_checkpointing=True)
        tokenizer = VQVAE()
    sides = [side for side, _ in VAR_256.grids]
    tokenizer = filled(tokenizer, device, torch.float32).requires_grad_(False)
    return ImageNetVARPolicy(filled(transformer, device, dtype), tokenizer, sides)  # type: ignore[arg-type]


def infinity_2b(pixels: str, device: str, dtype: torch.dtype) -> VARPolicy:
    # As in infinity_2b_reg.pth: 32 blocks of 2048 in 8 chunks, 16 heads, 32 bits, one AdaLN for all blocks.
    sizes = Sizes(
        width=2048,
        bits=32,
        chunks=(4,) * 8,
        depth=32,
        heads=16,
        text_width=TEXT_WIDTH,
        text_length=512,
        pool_heads=TEXT_WIDTH // 128,
        levels=15,
        hidden=8192,
        scale_shape=(1, 16, 1, 1),
        gated=False,
        rms=False,
        input_norm=False,
        shared_aln=True,
        cross_scale=False,
        head_aln=True,
        head_depth=1,
    )
    with torch.device("meta"):
        transformer = InfinityTransformer(sizes, "first", gradient_checkpointing=True)
        tokenizer = BSQTokenizer()
    tokenizer = filled(tokenizer, device, torch.float32).requires_grad_(False)
    return InfinityPolicy(filled(transformer, device, dtype), tokenizer, RandomFeatures(), pixels)  # type: ignore[arg-type]


MODELS = {
    "var_d16": lambda *where: var(16, *where),
    "var_d30": lambda *where: var(30, *where),
    "infinity_2b_025m": lambda *where: infinity_2b("0.25M", *where),
    "infinity_2b_1m": lambda *where: infinity_2b("1M", *where),
}
M = {"var_d16": "128px", "var_d30": "128px"}


def sample(policy: VARPolicy, stage: Stage, images_at_once: int) -> Rollout:
    prompts = [Prompt("goldfish", label=1)]
    keys = prompt_keys(0, 0, prompts, policy.device)
    return sample_tree(policy, prompts, stage, policy.default_sampling, keys, images_at_once)


def update(policy: VARPolicy, rollout: Rollout, micro_batch: int) -> None:
    stage = rollout.stage
    cond = policy.encode_prompts(rollout.prompts).repeat(stage.branches)
    for first in range(0, len(cond), micro_batch):
        rows = slice(first, first + micro_batch)
        scored = policy([t[rows] for t in rollout.tokens], cond.rows(rows), stage.start, stage.stop)
        torch.cat(scored.log_prob, dim=1).mean().backward()


def measure(policy: VARPolicy, stage: Stage, options: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds to sample, seconds to update, peak memory in GiB (NaN without a GPU)."""
    cuda = options.device.startswith("cuda")
    seconds = [0.0, 0.0]
    for trial in range(2):  # the first warms up
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        marks = [time.perf_counter()]
        for part in ("sample", "update"):
            with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=cuda):
                if part == "sample":
                    rollout = sample(policy, stage, options.images_at_once)
                else:
                    update(policy, rollout, options.micro_batch)
            if cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
        policy.zero_grad(set_to_none=trial == 0)
        seconds = [marks[1] - marks[0], marks[2] - marks[1]]
    return seconds[0], seconds[1], torch.cuda.max_memory_allocated() / 2**30 if cuda else math.nan


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--branches", type=int, default=16, help="A")
    parser.add_argument("--micro_batch", type=int, default=4, help="branches in one backward pass")
    parser.add_argument("--images_at_once", type=int, default=32)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights; a GPU autocasts to bf16"
    )
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU here; --device cpu runs the same without figures of memory")
    print(f"torch {torch.__version__}, {options.device}, weights {options.dtype}, A = {options.branches}, K = 2")
    print(
        "| model | stage | tokens trained | images/s sampled | images/s sampled and trained | peak GiB |\n|---|---|---|---|---|---|"
    )
    for name in options.models:
        policy = MODELS[name](options.device, getattr(torch, options.dtype))
        schedule = policy.schedule()
        stages = cycle(len(schedule), schedule.resolve_m(M.get(name, "256px")), options.branches, 2, ["prefix", "suffix"])
        for stage in stages:
            sampling, training, peak = measure(policy, stage, options)
            seconds = sampling + training
            images, tokens = stage.images_per_prompt, stage.branches * schedule.span(stage.start, stage.stop)
            print(
                f"| {name} | {stage.name} | {tokens} | {images / sampling:.2f} | {images / seconds:.2f} | {peak:.1f} |",
                flush=True,
            )
        del policy
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
