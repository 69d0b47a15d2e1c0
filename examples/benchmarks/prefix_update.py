"""How much faster is the update of a prefix, compared with the ratio of FLOPs?

Times forward plus backward of `VARPolicy.forward` on scales [0, m) and on all scales, on the same batch, in turn, without an
optimizer, and compares the ratio of the medians with the ratio of the FLOPs that torch counts. Run it alone on a quiet machine:

    python examples/benchmarks/prefix_update.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from varrl_lightning.policies.lettering import LetteringPolicy, LetteringTransformer
from varrl_lightning.types import Prompt


def update(policy: LetteringPolicy, tokens: list[torch.Tensor], rows: int, stop: int) -> None:
    cond = policy.encode_prompts([Prompt('"STONE"')]).repeat(rows)
    scored = policy(tokens[:stop], cond, 0, stop)
    torch.cat(scored.log_prob, dim=1).mean().backward()
    policy.zero_grad()


def flops(policy: LetteringPolicy, tokens: list[torch.Tensor], rows: int, stop: int) -> int:
    with FlopCounterMode(display=False) as counter:
        update(policy, tokens, rows, stop)
    return counter.get_total_flops()


def seconds(policy: LetteringPolicy, tokens: list[torch.Tensor], rows: int, stop: int) -> float:
    start = time.perf_counter()
    update(policy, tokens, rows, stop)
    return time.perf_counter() - start


def compare(name: str, width: int, depth: int, rows: int, m: int, repeats: int) -> None:
    torch.manual_seed(0)
    policy = LetteringPolicy(LetteringTransformer(width=width, depth=depth, heads=max(4, width // 64)))
    schedule = policy.schedule()
    tokens = [torch.randint(policy.vocab_size, (rows, n)) for n in schedule.lengths]
    stops = {"prefix": m, "full": len(schedule)}
    counted = {part: flops(policy, tokens, rows, stop) for part, stop in stops.items()}  # and a warm-up
    times: dict[str, list[float]] = {part: [] for part in stops}
    for _ in range(repeats):
        for part, stop in stops.items():
            times[part].append(seconds(policy, tokens, rows, stop))
    prefix, full = (statistics.median(times[part]) for part in ("prefix", "full"))
    promised = counted["full"] / counted["prefix"]
    size = sum(p.numel() for p in policy.parameters()) / 1e6
    print(
        f"{name}: {size:.1f} M parameters, {rows} rows, {schedule.span(0, m)} of {schedule.span(0, len(schedule))} tokens | "
        f"prefix {prefix:.3f} s, full {full:.3f} s | t_full / t_prefix = {full / prefix:.2f}, FLOPs {promised:.2f}, "
        f"ratio of ratios {full / prefix / promised:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--m", type=int, default=4, help="scales in the prefix")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    compare("matrix products dominate", width=768, depth=6, rows=32, m=options.m, repeats=options.repeats)
    compare("embedded size", width=128, depth=3, rows=64, m=options.m, repeats=options.repeats)


if __name__ == "__main__":
    main()
