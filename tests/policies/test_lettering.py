"""The embedded model: its sampler and teacher forcing agree, its files load strictly, and it says what it cannot draw."""

import re
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from varrl_lightning.evaluation.evaluate import EVALUATION_UPDATE
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.policies.lettering import ASSETS, CONTENT, HIDDEN, LETTERING, STYLES, LetteringPolicy, sign_of
from varrl_lightning.policies.lettering_sign import COLOURS, MATERIALS, Sign
from varrl_lightning.policies.state import Cond, State
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.types import Box, Prompt, Sampling, Score

PROMPTS = [
    Prompt(text='a red wooden sign that says "OPEN LATE"'),
    Prompt(text='"FOX"'),
    Prompt(text='a sign that says "quiz" "WAGON" "MILD", blue'),
]
T = len(LETTERING)
KEYS = torch.arange(3)


@pytest.fixture(scope="module")
def policy() -> LetteringPolicy:
    return LetteringPolicy.from_pretrained()


def sampled_features(policy: LetteringPolicy, cond: Cond, state: State) -> list[torch.Tensor]:
    """Logits of every scale as the sampler computed them, by replaying the drawn tokens through the cache."""
    inputs = cond.tensors
    cache, latent, logits = policy.start_cache(inputs, LETTERING), policy.initial_latent(len(cond), LETTERING), []
    for t, tokens in enumerate(state.tokens):
        (features,), cache = policy.scale_features(inputs, cache, [latent], t, LETTERING)
        logits.append(policy.logits(features))
        latent = policy.accumulate(latent, tokens, t, LETTERING)
    return logits


@pytest.mark.parametrize("fork_at", [0, CONTENT, 6])
def test_sampler_and_teacher_forcing_agree(policy: LetteringPolicy, fork_at: int) -> None:
    cond = policy.encode_prompts(PROMPTS)
    state = policy.sample(policy.begin(cond, Sampling(), KEYS), fork_at).fork(2)
    state = policy.sample(state, len(LETTERING))
    with torch.no_grad():
        forced = policy.span_features(state.cond.tensors, state.tokens, 0, T, LETTERING)
        for drawn, features in zip(sampled_features(policy, state.cond, state), forced, strict=True):
            logits = policy.logits(features)
            assert (drawn - logits).abs().max() <= 1e-5 * logits.abs().max()
        scored = policy(state.tokens, state.cond, 0, T)
    for drawn, log_prob in zip(state.log_probs, scored.log_prob, strict=True):
        torch.testing.assert_close(drawn, log_prob, atol=5e-5, rtol=0)  # of logits up to 25, whose rounding this is
    torch.testing.assert_close(policy.decode(state.tokens, LETTERING), policy.decode_latent(state.latent), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg", [None, 2.0])
def test_truncated_and_guided_log_probs_are_the_samplers(policy: LetteringPolicy, cfg: float | None) -> None:
    sampling = Sampling(cfg=cfg, top_k=2, top_p=0.9, temperature=0.8)
    cond = policy.encode_prompts(PROMPTS)
    state = policy.sample(policy.begin(cond, sampling, KEYS), T)
    with torch.no_grad():
        scored = policy(state.tokens, cond, 0, T, score=Score("sampler", sampling))
    for drawn, log_prob in zip(state.log_probs, scored.log_prob, strict=True):
        torch.testing.assert_close(drawn, log_prob, atol=1e-4, rtol=1e-4)


def test_a_span_does_not_look_ahead(policy: LetteringPolicy) -> None:
    """Features of a scale stay the same when later tokens change, and when later scales are not run."""
    cond = policy.encode_prompts(PROMPTS)
    tokens = policy.sample(policy.begin(cond, Sampling(), KEYS), T).tokens
    changed = [*tokens[:3], *((t + 7) % 512 for t in tokens[3:])]
    with torch.no_grad():
        whole = policy.span_features(cond.tensors, tokens, 2, 4, LETTERING)
        other = policy.span_features(cond.tensors, changed, 0, T, LETTERING)
        short = policy.span_features(cond.tensors, tokens[:3], 2, 4, LETTERING)
    for first, second, third in zip(whole, other[2:4], short, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(first, third, atol=1e-5, rtol=1e-5)


def test_guidance_and_words_change_the_logits(policy: LetteringPolicy) -> None:
    cond = policy.encode_prompts(PROMPTS)
    tokens = policy.sample(policy.begin(cond, Sampling(), KEYS), T).tokens
    with torch.no_grad():
        plain = policy(tokens, cond, 3, 4).log_prob[0]
        guided = policy(tokens, cond, 3, 4, score=Score("guided", Sampling(cfg=2.0))).log_prob[0]
        wordless = policy(tokens, Cond(LETTERING, cond.unconditional, cond.unconditional), 3, 4).log_prob[0]
    assert (plain - guided).abs().max() > 0.1
    assert (plain - wordless).mean() > 0.1, "knowing the word must make its tokens likelier"


def test_decoding_needs_no_more_than_a_prefix(policy: LetteringPolicy) -> None:
    cond = policy.encode_prompts(PROMPTS)
    tokens = policy.sample(policy.begin(cond, policy.default_sampling, KEYS), CONTENT).tokens
    image = policy.decode(tokens, LETTERING)
    assert image.shape == (3, 3, 48, 60)
    assert 0 <= image.min() < 0.5 < image.max() <= 1


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ('a sign that says "TO"', "['TO']"),
        ('"OPEN TO ALL"', "['OPEN TO ALL']"),
        ('"LETTER"', "['LETTER']"),
        ('"FIVE5"', "['FIVE5']"),
        ('"ONE TWO" "SIX TEN"', "['ONE TWO', 'SIX TEN']"),
        ("a sign that says OPEN", "got no word in quotes"),
    ],
)
def test_words_that_cannot_be_drawn_are_named(policy: LetteringPolicy, text: str, given: str) -> None:
    with pytest.raises(ValueError, match=r"one to three words of 3-5 letters A-Z") as error:
        policy.encode_prompts([*PROMPTS, Prompt(text=text, id="the fourth")])
    assert "'the fourth'" in str(error.value)
    assert given in str(error.value)


def test_lower_case_is_upper_case(policy: LetteringPolicy) -> None:
    cond = policy.encode_prompts([Prompt(text='a Red sign, "terse"'), Prompt(text='a red sign, "TERSE"')])
    assert cond.tensors["letters"].tolist() == [[*[0] * 5, 20, 5, 18, 19, 5, *[0] * 5]] * 2
    assert cond.tensors["styles"].tolist() == [[STYLES.index("red"), 0]] * 2


def test_letters_stand_in_the_cells_of_their_lines(policy: LetteringPolicy) -> None:
    """One word on the middle line, two on the first and the last; three letters begin a cell further right. A is 1, blank 0."""
    cond = policy.encode_prompts([Prompt('"FOX"'), Prompt('"OPEN LATE"'), Prompt('"ACE" "BEAD" "CABAL"')])
    assert cond.tensors["letters"].view(3, 3, 5).tolist() == [
        [[0] * 5, [0, 6, 15, 24, 0], [0] * 5],
        [[15, 16, 5, 14, 0], [0] * 5, [12, 1, 20, 5, 0]],
        [[0, 1, 3, 5, 0], [2, 5, 1, 4, 0], [3, 1, 2, 1, 12]],
    ]


def test_the_unconditional_half_hides_letters_and_styles(policy: LetteringPolicy) -> None:
    cond = policy.encode_prompts(PROMPTS)
    assert (cond.unconditional["letters"] == HIDDEN).all()
    assert (cond.unconditional["styles"] == 0).all()
    assert cond.unconditional["letters"].shape == cond.tensors["letters"].shape == (3, 15)
    assert cond.unconditional["styles"].shape == cond.tensors["styles"].shape == (3, 2)


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ('a red wooden sign that says "OPEN LATE"', Sign(("OPEN", "LATE"), "red", "wooden")),
        ('a Metal sign, ORANGE, that says "FOX"', Sign(("FOX",), "orange", "metal")),
        ('"FOX"', Sign(("FOX",))),
        ('a sign that says "RED BRICK"', Sign(("RED", "BRICK"))),
        ('a blue sign that says "RED"', Sign(("RED",), "blue")),
        ('a blue sign, not a red one, that says "FOX"', Sign(("FOX",), "blue")),
        ('a tired, papery sign that says "FOX"', Sign(("FOX",))),
        ('a sign that says "ＯＰＥＮ ﬁsh"', Sign(("OPEN", "FISH"))),
    ],
)
def test_colour_and_material_are_read_outside_of_the_quotes(text: str, sign: Sign) -> None:
    assert sign_of(Prompt(text)) == sign


@pytest.mark.parametrize("word", ["LIġHT", "LIGHT" + chr(0x131), "Spaß", "ſﬁß", "CAFÉ", "lıght"])
def test_letters_that_are_others_in_capitals_are_refused(word: str) -> None:
    """The reward would look for `lıght` and never find it in LIGHT."""
    with pytest.raises(ValueError, match="writes one to three words of 3-5 letters A-Z"):
        sign_of(Prompt("a sign", words=(word,)))


def test_four_of_seven_scales_hold_an_eighth_of_the_tokens() -> None:
    assert LETTERING.image_size == (48, 60)
    assert (LETTERING.span(0, CONTENT), LETTERING.span(0, T)) == (49, 379)


def test_other_sizes_are_refused(policy: LetteringPolicy) -> None:
    with pytest.raises(ValueError, match=r"\(48, 60\) pixels only, got \(64, 64\)"):
        policy.encode_prompts([Prompt(text='"TERSE"', size=(64, 64))])


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_loading_is_strict(part: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.safetensors"
    tensors = load_file(ASSETS / f"{part}.safetensors")
    missing, misshaped = sorted(tensors)[:2]
    del tensors[missing]
    tensors[misshaped] = torch.zeros(3)
    save_file({**tensors, "surplus": torch.zeros(2)}, file)
    paths = {"path": file} if part == "transformer" else {"tokenizer": file}
    with pytest.raises(ValueError, match="does not fit") as error:
        LetteringPolicy.from_pretrained(**paths)
    message = str(error.value)
    assert str(file) in message
    assert f"missing {missing} " in message
    assert f"misshaped {misshaped}: [3] in the file" in message
    assert "unexpected surplus [2]" in message


def test_weights_are_small_and_single_precision_in_memory(policy: LetteringPolicy) -> None:
    for part in ("transformer", "tokenizer"):
        assert (ASSETS / f"{part}.safetensors").stat().st_size < 3e6
    assert {p.dtype for p in policy.transformer.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in policy.tokenizer.parameters())
    assert all(p.requires_grad for p in policy.transformer.parameters())


def test_the_embedded_model_spells_about_half_of_its_words_and_by_its_first_scales(policy: LetteringPolicy) -> None:
    """Room to learn, and nothing that the later scales decide: .55 of all test words (examples/where_it_starts.py).

    A hundred words leave a standard error of .05, which is what the bounds are wide of.
    """
    prompts, reward = load_prompts(ASSETS / "test.jsonl")[:60], OCRReward(detect=False, max_line_width=96, min_confidence=0.5)
    keys = prompt_keys(0, EVALUATION_UPDATE, prompts, policy.device)
    with torch.no_grad():
        content = policy.sample(policy.begin(policy.encode_prompts(prompts), policy.default_sampling, keys), CONTENT)
        pictures = [policy.decode_latent(state.latent) for state in (content, policy.sample(content, T))]
    accuracy = []
    for images in pictures:
        texts = reward(images, prompts).texts
        assert texts is not None
        right = [word in read for prompt, read in zip(prompts, texts, strict=True) for word in prompt.words]
        accuracy.append(sum(right) / len(right))
    assert 0.40 <= accuracy[1] <= 0.72
    assert abs(accuracy[0] - accuracy[1]) <= 0.05


def test_prompt_files() -> None:
    """The words of all four lists are disjoint; regions are all lines, the empty ones too, and every colour, material and letter
    is asked for.
    """
    words = {}
    for split, count, each in (("pretraining", 2647, 1), ("train", 400, 3), ("validation", 200, 3), ("test", 600, 1)):
        prompts = load_prompts(ASSETS / f"{split}.jsonl")
        assert len(prompts) == count * each
        signs = [sign_of(prompt) for prompt in prompts]
        words[split] = {word for sign in signs for word in sign.words}
        assert len(words[split]) == count
        assert set("".join(words[split])) == set(string.ascii_uppercase)
        assert {sign.colour for sign in signs} == {None, *COLOURS}
        assert {sign.material for sign in signs} == {None, *MATERIALS}
        for prompt, sign in zip(prompts, signs, strict=True):
            assert prompt.category == f"{len(sign.words)} word{'s' * (len(sign.words) > 1)}"
            assert prompt.regions == tuple(Box(0, top, 60, top + 16) for top in (0, 16, 32))
            assert prompt.words == sign.words
    assert sum(map(len, words.values())) == len(set().union(*words.values()))
    assert all(re.fullmatch("[A-Z]{3,5}", word) for split in words.values() for word in split)


def test_the_prompt_files_are_made_from_the_words_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/prompts/make_prompts.py writes every file that it makes as it is shipped, byte for byte."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "prompts"))
    import make_prompts

    classes = tmp_path / "imagenet" / "classes.txt"
    classes.parent.mkdir()
    classes.write_bytes((ASSETS.parent / "imagenet" / "classes.txt").read_bytes())
    monkeypatch.setattr(make_prompts, "ASSETS", tmp_path)
    make_prompts.main()
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    assert made == sorted(path.relative_to(ASSETS.parent) for path in ASSETS.parent.rglob("*.jsonl"))
    for path in made:
        assert (tmp_path / path).read_bytes() == (ASSETS.parent / path).read_bytes(), path
