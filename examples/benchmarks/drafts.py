"""What does an image cost less where nothing after scale m is sampled (num_continuations: 0)?

Samples 32 images of the embedded model, m = 4, with K = 0 and with K = 1 in turn, on one thread, and compares the medians of their
seconds. Then counts the same for public models at their real sizes, of which nothing is computed: tokens of an image and of its
draft, and FLOPs of a group of 16 branches by the code that samples, as torch counts them. `sampled` is the transformer with its
text, guidance and cache; `decoded` adds the tokenizer's decoder, which a draft and a whole image need alike. NextFlow's weights are
not published: its rows have the scales of Table 6, a language model of Qwen2.5-7B's size and VAR's tokenizer. Run it alone on a
quiet machine:

    python examples/benchmarks/drafts.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from varrl_lightning import VARPolicy
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.memory import Simulation
from varrl_lightning.policies.lettering import CONTENT, LetteringPolicy
from varrl_lightning.policies.published import published
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt, Stage

WORDS = ("STONE", "RIVER", "BREAD", "CLOUD")
BRANCHES = 8
"""Of each word: 32 images."""
GROUP = 16
"""A of the shipped configurations, whose m these are, too."""
MODELS = {
    "VAR-d16, 256 px": ("ImageNetVARPolicy", {"path": "var_d16.pth"}, "128px"),
    "Infinity-2B, 1M": ("InfinityPolicy", {"path": "infinity_2b_reg.pth", "text_encoder": "flan-t5-xl", "pixels": "1M"}, "256px"),
    "NextFlow's scales, 1024 px": ("LLMPrefixPolicy", {"backbone": "Qwen/Qwen2.5-7B"}, "256px"),
}


class AnswersFalse(TorchDispatchMode):
    """Answers False where a policy reads a boolean of a tensor without values, for example whether nothing is padded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return False
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Count:
    """FLOPs of a group of images: of all but the decoder, and of the decoder."""

    sampled: int
    decoded: int

    @property
    def total(self) -> int:
        return self.sampled + self.decoded


def seconds(policy: VARPolicy, K: int, m: int, seed: int) -> float:
    prompts = [Prompt(f'"{word}"') for word in WORDS]
    keys = prompt_keys(seed, 0, prompts, policy.device)
    start = time.perf_counter()
    rollout = sample_tree(policy, prompts, Stage(0, m, BRANCHES, K), policy.default_sampling, keys)
    taken = time.perf_counter() - start
    assert len(rollout.images) == BRANCHES * len(WORDS)
    return taken


def compare_rates(m: int, repeats: int) -> None:
    policy = LetteringPolicy.from_pretrained()
    taken: dict[int, list[float]] = {0: [], 1: []}
    for seed in range(-2, repeats):
        for K, times in taken.items():
            one = seconds(policy, K, m, seed)
            if seed >= 0:  # the others warm up
                times.append(one)
    rates = {K: BRANCHES * len(WORDS) / statistics.median(times) for K, times in taken.items()}
    ratios = sorted(whole / draft for whole, draft in zip(taken[1], taken[0], strict=True))
    print(
        f"embedded model, m = {m}, {BRANCHES * len(WORDS)} images, {torch.get_num_threads()} thread: "
        f"K = 0 {rates[0]:.0f} images/s, K = 1 {rates[1]:.0f} images/s, "
        f"{rates[0] / rates[1]:.2f} times (of {repeats} pairs {ratios[0]:.2f} to {ratios[-1]:.2f})\n",
        flush=True,
    )


def count(simulation: Simulation, stage: Stage) -> Count:
    """FLOPs of one group, by the code that samples, on tensors that have shapes and no values."""
    policy, decoding = simulation.policy, 0
    decode_latent = policy.decode_latent
    # The fused kernel of a CPU is none that torch counts; the others' products are the same.
    with sdpa_kernel(SDPBackend.MATH), simulation.mode, AnswersFalse(), FlopCounterMode(display=False) as counter:

        def decode(latent: Tensor) -> Tensor:
            nonlocal decoding
            before = counter.get_total_flops()
            images = decode_latent(latent)
            decoding += counter.get_total_flops() - before
            return images

        policy.__dict__["decode_latent"] = decode
        try:
            keys = prompt_keys(0, 0, [simulation.prompt], policy.device)
            sample_tree(policy, [simulation.prompt], stage, simulation.sampling, keys)
        finally:
            del policy.__dict__["decode_latent"]
    return Count(counter.get_total_flops() - decoding, decoding)


def simulated(policy: VARPolicy) -> Simulation:
    """The policy without values, sampled as it is by default."""
    rewards = WeightedRewards.from_spec(lambda images, _: images.new_zeros(len(images)))
    stage = Stage(0, len(policy.schedule()), GROUP)
    simulation = Simulation(policy, GRPO((stage,), rewards, Full(), policy.default_sampling))
    simulation.read(Prompt('a red wooden sign that says "STONE" on a wall', label=1))
    return simulation


def row(name: str, policy: VARPolicy, m: int | str) -> str:
    schedule, simulation = policy.schedule(), simulated(policy)
    m, T = schedule.resolve_m(m), len(schedule)
    draft, whole = (count(simulation, Stage(0, m, GROUP, K)) for K in (0, 1))
    tokens = schedule.span(0, m), schedule.span(0, T)
    flops = [(whole.sampled, draft.sampled), (whole.total, draft.total)]
    columns = [
        name,
        f"{m} of {T}",
        f"{tokens[0]} of {tokens[1]}: {tokens[1] / tokens[0]:.1f}",
        *(f"{few / GROUP / 1e9:,.2f} of {many / GROUP / 1e9:,.2f}: {many / few:.1f}" for many, few in flops),
    ]
    return f"| {' | '.join(columns)} |"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--m", type=int, default=CONTENT, help=f"scales of the embedded model's prefix (default: {CONTENT})")
    parser.add_argument("--repeats", type=int, default=21, help="pairs of rollouts that are timed; 0 only counts (default: 21)")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="public models that are counted")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}")
    if options.repeats:
        compare_rates(options.m, options.repeats)
    print("K = 0 of K = 1: how many times less\n")
    print("| model | m | tokens of an image | GFLOPs of an image, sampled | sampled and decoded |\n|---|---|---|---|---|")
    print(row("embedded", LetteringPolicy.from_pretrained(), options.m), flush=True)
    for name in options.models:
        family, init_args, m = MODELS[name]
        policy = published(
            SimpleNamespace(class_path=f"{family}.from_pretrained", init_args=SimpleNamespace(**{"path": "", **init_args}))
        )
        assert policy is not None
        print(row(name, policy, m), flush=True)


if __name__ == "__main__":
    main()
