"""Train the embedded model in a plain PyTorch loop: a policy, a `GRPO`, an optimizer; no Trainer.

    python examples/plain_loop.py 20

prints the mean reward of each of 20 updates, about two seconds each on two CPU cores.
"""

from __future__ import annotations

import sys

import torch

from varrl_lightning import GRPO, CreditOptions, LetteringPolicy, Objective, Score
from varrl_lightning.algorithms.stages import prefix_stage
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.mask_sources.boxes import Boxes
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards


def train(updates: int, prompts_at_once: int = 8) -> list[float]:
    policy = LetteringPolicy.from_pretrained()
    stage = prefix_stage(T=7, m=4, A=8, K=1, first_scale="shared")
    rewards = WeightedRewards({"ocr": WeightedReward(OCRReward(detect=False, max_line_width=96, min_confidence=0.5))})
    score = Score("sampler", policy.default_sampling)
    grpo = GRPO((stage,), rewards, Boxes(), policy.default_sampling, CreditOptions(alpha=0.6), Objective(score))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    prompts = load_prompts("builtin:lettering/train.jsonl")
    means = []
    for update in range(updates):
        batch = prompts[update * prompts_at_once :][:prompts_at_once]
        keys = prompt_keys(0, update, batch, policy.device)
        rollout, scores = grpo.sample(policy, batch, stage, keys)  # images, and the rewards' scores of them
        credit = grpo.assign(rollout, scores)  # returns, advantages, weights of tokens
        rows = credit.rows(rollout.branches, real=len(rollout.branches))
        for micro_batch in grpo.losses(policy, None, rollout, rows, size=32, old={}):
            micro_batch.loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        means.append(float(credit.rewards.mean()))
        print(f"update {update + 1}: reward {means[-1]:.3f}")
    return means


if __name__ == "__main__":
    train(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
