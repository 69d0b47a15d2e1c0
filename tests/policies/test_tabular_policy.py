"""What the policy interface promises, on policies whose every probability is known."""

import math
from itertools import product

import pytest
import torch
from tabular import paths
from tabular_policy import TabularPolicy
from torch import Tensor

from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.types import Prompt, Sampling, Score, Stage

GRIDS = ((1, 1), (1, 2), (2, 1))
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_k=2),
    Sampling(top_p=0.7),
    Sampling(cfg=2.5),
    Sampling(cfg=1.5, top_k=3, top_p=0.9, temperature=1.3),
]


def _policy(kind: str, **options: object) -> TabularPolicy:
    if kind == "bitwise":
        return TabularPolicy(GRIDS, vocab_size=4, bits=2, labels=2, **options)
    return TabularPolicy(GRIDS, vocab_size=3, labels=2, guidance="ramp", **options)


def _one(logits: list[float], sampling: Sampling) -> list[float]:
    """Probabilities of one categorical draw, by hand."""
    logits = [x / sampling.temperature for x in logits]
    order = sorted(range(len(logits)), key=lambda v: -logits[v])[: sampling.top_k or None]
    weight = {v: math.exp(logits[v]) for v in order}
    kept, mass = [], 0.0
    for v in order:
        kept.append(v)
        mass += weight[v] / sum(weight.values())
        if mass >= sampling.top_p:
            break
    total = sum(weight[v] for v in kept)
    return [weight[v] / total if v in kept else 0.0 for v in range(len(logits))]


def _exact(policy: TabularPolicy, sampling: Sampling, label: int) -> list[Tensor]:
    """Log-probabilities of tokens (S_t, n_t, V) under the sampler, draw by draw."""
    out = []
    for t, table in enumerate(policy.transformer):
        cfg = sampling.cfg
        c, u = table[label + 1].detach(), table[0].detach()
        if cfg is not None and policy.guidance == "ramp":
            c = c + cfg * t / (len(policy.transformer) - 1) * (c - u)
        elif cfg is not None:
            c = u + cfg * (c - u)
        rows = c.flatten(0, -2).tolist()
        p = torch.tensor([_one(row, sampling) for row in rows]).view(c.shape).log()
        if policy.bits is not None:  # the first bit is the highest
            p = torch.stack([p[..., 0, v >> 1] + p[..., 1, v & 1] for v in range(4)], dim=-1)
        out.append(p)
    return out


def _enumerated(policy: TabularPolicy, label: int = 0) -> tuple[list[Tensor], object]:
    """Every image there is: its tokens, and the condition."""
    length = sum(policy.tree.lengths)
    numbers = torch.tensor(list(product(range(policy.vocab_size), repeat=length)))
    return policy.tokens_of(numbers), policy.encode_prompts([Prompt("p", label=label)] * len(numbers))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", ["categorical", "bitwise"])
def test_images_are_drawn_as_often_as_they_are_likely(kind: str, sampling: Sampling) -> None:
    """Through the tree of a stage: 2 starts, 4 branches, 2 continuations, for each of 1000 updates and two labels."""
    policy = _policy(kind)
    prompts = [Prompt("a", label=0), Prompt("b", label=1)] * 1000
    keys = torch.cat([prompt_keys(0, update, prompts[:2], policy.device) for update in range(1000)])
    stage = Stage(1, 2, branches=4, continuations=2, starts=2)
    rollout = sample_tree(policy, prompts, stage, sampling, keys)
    leaves = policy.leaves(rollout.images).view(1000, 2, 8)
    for label in (0, 1):
        exact = [policy.tree.factorised(x, t) for t, x in enumerate(_exact(policy, sampling, label))]
        for depth in (1, 2, 3):
            p = paths([x.nan_to_num(neginf=-1e9) for x in exact], 0, depth).exp().flatten()
            drawn = (leaves[:, label] // (policy.tree.states(3) // policy.tree.states(depth))).flatten()
            frequency = drawn.bincount(minlength=len(p)) / drawn.numel()
            # Of the 8 images of a prompt at least 2 are independent.
            deviation = (p * (1 - p) / 2000).sqrt()
            assert ((frequency - p).abs() <= 5 * deviation + 1e-3).all()
            assert (frequency[p < 1e-9] == 0).all()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", ["categorical", "bitwise"])
def test_the_score_of_the_sampler_is_the_exact_log_probability_of_what_it_drew(kind: str, sampling: Sampling) -> None:
    policy = _policy(kind)
    prompts = [Prompt(str(i), label=i % 2) for i in range(20)]
    rollout = sample_tree(policy, prompts, Stage(0, 3, 4), sampling, prompt_keys(1, 0, prompts, policy.device))
    scored = policy(rollout.tokens, policy.encode_prompts(prompts).repeat(4), 0, 3, score=Score("sampler", sampling))
    exact = [_exact(policy, sampling, label) for label in (0, 1)]
    numbers = (rollout.images[:, 0, 0] * (policy.vocab_size - 1)).round().long()
    for row in range(80):
        for t in range(3):
            first, n = policy.schedule().offsets[t], policy.tree.lengths[t]
            state = int(sum(v * policy.vocab_size**i for i, v in enumerate(reversed(numbers[row, :first].tolist()))))
            expected = [exact[(row // 4) % 2][t][state, i, numbers[row, first + i]] for i in range(n)]
            torch.testing.assert_close(rollout.log_probs[t][row], torch.stack(expected), atol=2e-6, rtol=1e-5)
    for drawn, again in zip(rollout.log_probs, scored.log_prob, strict=True):
        torch.testing.assert_close(again, drawn, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["categorical", "bitwise"])
def test_all_that_a_state_holds_is_forked_alike(kind: str) -> None:
    """Tokens, latent, condition and log-probabilities of a row stay those of one image, however often it was forked."""
    policy, sampling = _policy(kind), Sampling(cfg=1.5, temperature=1.2)
    prompts = [Prompt("a", label=0), Prompt("b", label=1)]
    state = policy.begin(policy.encode_prompts(prompts), sampling, prompt_keys(2, 0, prompts, policy.device))
    state = policy.sample(policy.sample(policy.sample(state.fork(2), 1).fork(3), 2).fork(2), 3)
    assert torch.equal(policy.decode(state.tokens, policy.schedule()), policy.decode_latent(state.latent))
    assert state.cond.tensors["table"].tolist() == [1] * 12 + [2] * 12
    for t, copies in enumerate((6, 2)):
        grouped = state.tokens[t].unflatten(0, (-1, copies))
        assert torch.equal(grouped, grouped[:, :1].expand_as(grouped)), "siblings share what was drawn before the fork"
    scored = policy(state.tokens, state.cond, 0, 3, score=Score("sampler", sampling))
    for drawn, again in zip(state.log_probs, scored.log_prob, strict=True):
        torch.testing.assert_close(again, drawn, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["categorical", "bitwise"])
def test_a_rollout_has_the_tokens_of_its_images(kind: str) -> None:
    policy, prompts = _policy(kind), [Prompt("a", label=0), Prompt("b", label=1)]
    stage = Stage(1, 2, branches=4, continuations=2, starts=2)
    rollout = sample_tree(policy, prompts, stage, Sampling(), prompt_keys(3, 0, prompts, policy.device))
    branch = [x.repeat_interleave(2, dim=0) for x in rollout.tokens]
    assert torch.equal(policy.decode([*branch, *rollout.tail_tokens], rollout.schedule), rollout.images)
    starts = rollout.tokens[0].unflatten(0, (2, 2, 2))  # prompts, starts, branches of a start
    assert torch.equal(starts, starts[:, :, :1].expand_as(starts))


@pytest.mark.parametrize("kind", ["categorical", "bitwise"])
@pytest.mark.parametrize(
    ("score", "scored_as"),
    [
        ("model", Sampling()),
        ("corrected", Sampling()),
        ("guided", Sampling(cfg=2.0)),
        ("sampler", Sampling(cfg=2.0, temperature=0.7)),
    ],
)
def test_every_score_over_all_images_is_a_distribution_and_the_right_one(kind: str, score: str, scored_as: Sampling) -> None:
    """Log-probabilities, entropy and KL of every token in every state, against the tables."""
    policy, sampling = _policy(kind), Sampling(cfg=2.0, temperature=0.7)
    reference = _policy(kind, seed=1)
    tokens, cond = _enumerated(policy)
    out = policy(tokens, cond, 0, 3, score=Score(score, sampling), reference=reference)
    total = sum(x.sum(dim=1) for x in out.log_prob)
    assert total.exp().sum().item() == pytest.approx(1, abs=1e-5)
    exact, anchor = (_exact(p, scored_as, 0) for p in (policy, reference))
    joint = [policy.tree.factorised(x, t) for t, x in enumerate(exact)]
    torch.testing.assert_close(total, paths(joint, 0, 3).flatten(), atol=1e-5, rtol=1e-5)
    last = policy.tree.states(3)
    for t in range(3):
        state = torch.arange(last) // (last // policy.tree.states(t))
        torch.testing.assert_close(out.entropy[t], -(exact[t].exp() * exact[t]).sum(-1)[state], atol=1e-5, rtol=1e-5)
        gap = (exact[t].exp() * (exact[t] - anchor[t])).sum(-1)
        torch.testing.assert_close(out.kl[t], gap[state], atol=1e-5, rtol=1e-4)
    if policy.bits is not None:
        torch.testing.assert_close(out.bit_log_prob[1].sum(-1), out.log_prob[1])


def test_a_drawn_token_is_in_the_support_of_its_score_even_when_the_policy_has_moved() -> None:
    policy = _policy("categorical")
    tokens, cond = _enumerated(policy)
    out = policy(tokens, cond, 0, 3, score=Score("sampler", Sampling(top_k=1)))
    assert all(x.isfinite().all() for x in out.log_prob)
    # A token off the support joins it: two tokens then share the mass.
    greedy = (out.log_prob[0] == 0).flatten()
    assert greedy.float().mean().item() == pytest.approx(1 / 3)
    expected = policy.transformer[0][1, 0, 0].detach()
    best, second = expected.max(), expected[int(tokens[0][~greedy][0, 0])]
    torch.testing.assert_close(out.log_prob[0][~greedy][0, 0], second - torch.logaddexp(best, second))


@pytest.mark.parametrize("kind", ["categorical", "bitwise"])
@pytest.mark.parametrize("score", ["model", "sampler"])
def test_a_forward_that_stops_early_is_the_beginning_of_the_full_one(kind: str, score: str) -> None:
    policy, how = _policy(kind), Score(score, Sampling(cfg=2.0, top_k=2))
    tokens, cond = _enumerated(policy)
    full = policy(tokens, cond, 0, 3, score=how, reference=policy)
    for start, stop in ((0, 1), (0, 2), (1, 2), (2, 3)):
        part = policy(tokens[:stop], cond, start, stop, score=how, reference=policy)
        for whole, span in ((full.log_prob, part.log_prob), (full.entropy, part.entropy), (full.kl, part.kl)):
            assert all(torch.equal(a, b) for a, b in zip(whole[start:stop], span, strict=True))


def _scale_gradients(policy: TabularPolicy, score: Score) -> list[list[Tensor]]:
    tokens, cond = _enumerated(policy)
    policy.zero_grad()
    sum(x.sum() for x in policy(tokens, cond, 0, 3, score=score).log_prob).backward()
    return [[table.grad[i].clone() for i in (0, 1)] for table in policy.transformer]


def test_where_the_gradient_of_guidance_flows() -> None:
    policy, sampling = _policy("bitwise"), Sampling(cfg=3.0)
    model = _scale_gradients(policy, Score("model", sampling))
    both = _scale_gradients(policy, Score("guided", sampling))
    half = _scale_gradients(policy, Score("guided", sampling, unconditional_gradient="detached"))
    for t in range(3):
        assert (model[t][0] == 0).all()
        torch.testing.assert_close(both[t][0], -2 / 3 * both[t][1], atol=1e-2, rtol=1e-3)  # d/du = 1 - cfg, d/dc = cfg
        assert both[t][1].abs().max() > 0.1
        torch.testing.assert_close(half[t][1], both[t][1])
        assert (half[t][0] == 0).all()


def test_chunks_change_nothing() -> None:
    tokens, cond = _enumerated(_policy("categorical"))
    gradients = []
    for chunk_tokens in (5, 50, 10**6):
        policy = _policy("categorical", chunk_tokens=chunk_tokens)
        torch.cat(policy(tokens[:2], cond, 0, 2).log_prob, dim=1).square().sum().backward()
        gradients.append([table.grad for table in list(policy.transformer)[:2]])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b)
