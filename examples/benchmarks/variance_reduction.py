"""What it is worth that images of a group share noise (`NoiseOptions`), on the embedded model: means and ranges of three seeds.

    python examples/benchmarks/variance_reduction.py

For m = 4 and m = 2, A = 8, r_1 shared, OCR as in prefix_only.yaml:

- `continuations: common`: how much of a return's difference from its group's mean is noise of one continuation, and how well these
  differences agree with those of the means of other, independent continuations of the same branches (correlation within groups);
- `branches: stratified`: tokens of the first trained scale, and groups, of which all branches are alike;
- the expected gradient and the variance of a centred advantage on a policy of three tokens: the former by enumeration.

The agreement of whole gradients is `varrl agreement --config prefix_only.yaml --variants noise`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from varrl_lightning import LetteringPolicy, NoiseOptions, Prompt, Rollout, Stage
from varrl_lightning.algorithms.noise import Strata, fold, uniforms
from varrl_lightning.algorithms.sampling import inverse_cdf
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.ocr import OCRReward

A, REFERENCE = 8, 3
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16, help="groups a seed")
    parser.add_argument("--data", default="builtin:lettering/train.jsonl", help="file of prompts")
    options = parser.parse_args()
    policy, prompts = LetteringPolicy.from_pretrained(), load_prompts(options.data)
    judge = OCRReward(detect=False, max_line_width=96, min_confidence=0.5)

    def returns(rollout: Rollout) -> Tensor:
        """(P, A, K)."""
        return judge(rollout.images, rollout.image_prompts).values.view(-1, A, rollout.stage.continuations).double()

    print(f"{options.prompts} groups of {A} branches a seed, {len(SEEDS)} seeds; mean (lowest to highest)")
    for m in (4, 2):
        rows = [group_noise(policy, _chosen(prompts, options.prompts, seed), m, seed, returns) for seed in SEEDS]
        print(f"\nm = {m}, K = 1")
        for name in rows[0]:
            print(f"  {name:<66}{_over_seeds([row[name] for row in rows])}")
    print("\nexpected gradient of a centred advantage, three tokens of three values, random returns; ten policies")
    for size in (2, 4, 8, 16):
        for name, value in small_policies(size).items():
            print(f"  A = {size:<3} {name:<62}{value}")


def group_noise(
    policy: LetteringPolicy, prompts: Sequence[Prompt], m: int, seed: int, returns: Callable[[Rollout], Tensor]
) -> dict[str, float]:
    """The measurements of one seed, by name."""
    keys = prompt_keys(seed, 0, prompts, policy.device)

    def sampled(K: int, noise: NoiseOptions) -> Rollout:
        stage = Stage(1, m, A, K)
        return sample_tree(policy, prompts, stage, policy.default_sampling, keys, images_at_once=64, noise=noise)

    independent = sampled(2 + REFERENCE, NoiseOptions())
    R, shared = returns(independent), returns(sampled(2, NoiseOptions(continuations="common")))
    own, reference = R[..., :2], R[..., 2:].mean(dim=-1)
    stratified = sampled(1, NoiseOptions(branches="stratified"))
    S = returns(stratified)
    found = {}
    for name, x in (("independent", own), ("common", shared)):
        found[f"variance of a centred return given its branch, {name}"] = noise_variance(x)
        found[f"correlation with the mean of {REFERENCE} other continuations, {name}"] = correlation(x, reference)
    for name, rollout, x in (("independent", independent, R[..., :1]), ("stratified", stratified, S)):
        tokens = rollout.tokens[1].unflatten(0, (-1, A))
        alike = (tokens == tokens[:, :1]).all(dim=1)
        found[f"tokens of r_2 that all branches have alike, {name}"] = float(alike.double().mean())
        found[f"groups whose returns have a deviation < .02, {name}"] = float((x[..., 0].std(dim=1) < 0.02).double().mean())
        found[f"variance of returns within groups, {name}"] = float(x[..., 0].var(dim=1).mean())
    return found


def noise_variance(x: Tensor) -> float:
    """Mean over branches of the variance over continuations of R - mean R of the group: (P, A, K) returns."""
    return float((x - x.mean(dim=1, keepdim=True)).var(dim=-1).mean())


def correlation(x: Tensor, reference: Tensor) -> float:
    """Of single continuations with the reference of the same branches, both centred within groups, pooled over groups."""
    a = x - x.mean(dim=1, keepdim=True)
    b = (reference - reference.mean(dim=1, keepdim=True))[..., None].expand_as(a)
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


# --- a policy of three tokens: r_1, and the two of r_2, whose distributions depend on r_1

V = 3
PATHS = torch.tensor(list(product(range(V), repeat=3)))


def small_policies(size: int, policies: int = 10, groups: int = 4000) -> dict[str, str]:
    """Bias (exact) and variance (sampled) of the centred gradient of stratified groups of `size` branches."""
    turned, bias, variance = [], [], []
    for seed in range(policies):
        draw = torch.Generator().manual_seed(seed)
        p = torch.randn(3, V, V, generator=draw, dtype=torch.float64).softmax(-1)
        p[0] = p[0, :1]  # r_1 depends on nothing
        R = torch.randn(len(PATHS), generator=draw, dtype=torch.float64)
        g = _scores(p)
        exact = (_path_probabilities(p, [torch.zeros(1)] * 3, 1)[0, 0, 0] * R) @ g
        expected = _expected_of_stratified(p, R, g, size)
        turned.append(float(torch.cosine_similarity(exact, expected, dim=0)))
        bias.append(float((expected - (size - 1) / size * exact).norm() / exact.norm()))
        spreads = [_sampled_variance(p, R, g, size, groups, stratified) for stratified in (True, False)]
        variance.append(spreads[0] / spreads[1])
    return {
        "stratified: cosine of the expected gradient with the true one": f"{_over_seeds(turned)}",
        "stratified: |E g - (A-1)/A G| / |G|; independent: 0": f"{_over_seeds(bias)}",
        "variance of g, stratified / independent": f"{_over_seeds(variance)}",
    }


def _scores(p: Tensor) -> Tensor:
    """(27, D): grad log pi of each path with respect to the logits."""
    a, b, c = PATHS.T
    rows = torch.arange(len(PATHS))
    g = torch.zeros(len(PATHS), 3, V, V, dtype=torch.float64)
    for token, (state, chosen) in enumerate(((torch.zeros_like(a), a), (a, b), (a, c))):
        g[rows, token, state] -= p[token, state]
        g[rows, token, state, chosen] += 1
    return g.flatten(1)


def _path_probabilities(p: Tensor, strata: Sequence[Tensor], size: int) -> Tensor:
    """(s_1, s_2, s_3, 27): the probability of each path where the uniform number of each token is in the stratum of that number."""
    a, b, c = PATHS.T
    upper = p.cumsum(-1)
    q = []
    for token, s in enumerate(strata):
        low, high = s.double()[:, None, None] / size, (s.double()[:, None, None] + 1) / size
        inside = torch.minimum(upper[token], high) - torch.maximum(upper[token] - p[token], low)
        q.append(size * inside.clamp(min=0))
    first, second, third = q[0][:, 0, a], q[1][:, a, b], q[2][:, a, c]
    return first[:, None, None] * second[None, :, None] * third[None, None, :]


def _expected_of_stratified(p: Tensor, R: Tensor, g: Tensor, size: int) -> Tensor:
    """E[1/A sum_i (R_i - mean R) grad log pi(i)]: the tokens of two branches are in different strata, each independently."""
    P = _path_probabilities(p, [torch.arange(size)] * 3, size)
    others = P @ R
    for axis in range(3):
        others = others.sum(dim=axis, keepdim=True) - others
    crossed = torch.einsum("xyz,xyzd->d", others, P @ g) / (size * (size - 1)) ** 3
    return (size - 1) / size * ((P.mean(dim=(0, 1, 2)) * R) @ g - crossed)


def _sampled_variance(p: Tensor, R: Tensor, g: Tensor, size: int, groups: int, stratified: bool) -> float:
    keys, numbers = torch.arange(groups).repeat_interleave(size), torch.arange(size).repeat(groups)
    u = uniforms(fold(keys, numbers), 0, 3, Strata(keys, numbers, size) if stratified else None)
    a = inverse_cdf(p[0, :1].expand(len(u), V), u[:, 0])
    b, c = (inverse_cdf(p[token, a], u[:, token]) for token in (1, 2))
    path = (a * V + b) * V + c
    returns = R[path].view(groups, size)
    each = ((returns - returns.mean(dim=1, keepdim=True)).flatten()[:, None] * g[path]).view(groups, size, -1).mean(dim=1)
    return float(each.var(dim=0).sum())


def _chosen(prompts: Sequence[Prompt], number: int, seed: int) -> list[Prompt]:
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [prompts[i] for i in order[:number]]


def _over_seeds(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    main()
