"""A reward of 2 means that word accuracy, NED, marks and tables count every word as read, in whatever form it is typed."""

from __future__ import annotations

import random
import string
import unicodedata
from collections.abc import Sequence

import pytest
import torch

from varrl_lightning.callbacks.samples import as_samples
from varrl_lightning.comparison.training import _words
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.metrics.text import NormalizedEditDistance, WordAccuracy
from varrl_lightning.rewards.flow_grpo_ocr import FlowGRPOOCR, flow_grpo_score
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.ocr_engines import Word
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.types import Box, Case, Prompt, Scores

SCRIPTS = [
    string.ascii_letters + string.digits,
    "éÉßẞıIİiœŒñÑåÅǅǆŉ",
    "αΑσςΣϊΐὈόάᾳᾼ",
    "абвЁёйЙїЇҐ",
    "אבגשׁלום״׳",
    "مفتوحةلاﷺﻻ",
    "हिन्दी\u200dक्ष",
    "เปิดน้ำ",
    "가각힣ㄱᄀ",
    "你好営業中ガガｶﾞー",
    "ＯＰＥＮ１＂＇",
    "½¼™℠…‥№㎡㏂⑴ﬁﬂ²₂",
    "’‘‛ʼ`´′″“”„–—−‐‑",
    "\u200b\u200d\u00ad\ufe0f\U000e0100\u200e❤👍🏽\u0301\u0308\u0307",
    " \u00a0\u3000\u2028\t",
]
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
BOX = Box(0, 0, 1, 1)


class Blind:
    detect = False

    def read(self, images: Sequence[object]) -> list[list[Word]]:
        return [[] for _ in images]


def reward(case: Case = "lower") -> OCRReward:
    return OCRReward(engine=Blind(), case=case)


def scored(wanted: Sequence[str], read: Sequence[str], case: Case = "lower") -> tuple[Prompt, Scores]:
    prompt = Prompt("a sign", words=tuple(wanted))
    return prompt, reward(case).score([[Word(text, 1.0, BOX) for text in read]], [prompt])


def all_read(prompt: Prompt, scores: Scores) -> dict[str, float]:
    """Everything that says how well the words of an image were read."""
    evaluation = Evaluation([prompt], torch.zeros(1, 3, 2, 2), scores.values, {"ocr": scores}, scores.texts, None, scores.case)
    compared = _words([prompt], scores.texts, scores.case)
    return {
        **{name: float(scores.components[name]) for name in ("word_accuracy", "ned", "in_order")},
        "extra": 1 - float(scores.components["extra_ratio"]),
        "mark": float(bool(as_samples(evaluation)[0].correct)),
        **{f"val/{name}": value for name, value in evaluation.metrics().items() if name != "reward"},
        **{f"compare/{name}": value[0] for name, value in compared.items()},
    }


def drawn(rng: random.Random) -> str:
    return "".join(rng.choice(rng.choice(SCRIPTS)) for _ in range(rng.randint(1, 6)))


def varied(rng: random.Random, text: str, case: Case) -> str:
    """The same text as another keyboard or another engine has it."""
    for one, other in [("’", "'"), ("–", "-"), ("−", "—"), ("´", "`")]:
        text = text.replace(*rng.choice([(one, other), (other, one), (one, one)]))
    text = unicodedata.normalize(rng.choice(FORMS), text)
    changes = [str.lower, str] if case == "lower" else [str]
    return "".join(c + rng.choice(["", "\u200b", "\ufe0f"]) for c in rng.choice(changes)(text))


@pytest.mark.parametrize("case", ["lower", "keep"])
def test_a_reward_of_2_is_a_word_accuracy_of_1(case: Case) -> None:
    rng, perfect = random.Random(case), 0
    for _ in range(240):
        wanted = [drawn(rng) for _ in range(rng.randint(1, 2))]
        others = [drawn(rng) for _ in wanted]
        read = [varied(rng, rng.choice([word, word, word, word, other]), case) for word, other in zip(wanted, others, strict=True)]
        prompt, scores = scored(wanted, read, case)
        if float(scores.values) == 2:
            perfect += 1
            assert all_read(prompt, scores) == pytest.approx(dict.fromkeys(all_read(prompt, scores), 1.0)), (wanted, read)
    assert perfect > 60


@pytest.mark.parametrize(
    ("wanted", "read"),
    [
        ("CAFE\u0301", "CAFÉ"),
        ("ＯＰＥＮ", "OPEN"),
        ("ﬁsh", "fish"),
        ("DON’T", "DON'T"),
        ("DON´T", "DON'T"),
        ("I ❤️ NY", "I ❤ NY"),
        ("9–5", "9-5"),
        ("½ PRICE", "1/2 price"),
        ("Οδός", "ΟΔΌΣ"),
        ("ACME™…", "ACMETM..."),
    ],
)
def test_what_is_drawn_right_is_counted_right_everywhere(wanted: str, read: str) -> None:
    prompt, scores = scored([wanted], read.split())
    assert float(scores.values) == 2
    assert set(all_read(prompt, scores).values()) == {1.0}
    assert flow_grpo_score(wanted, read) == 1


def test_the_rewards_case_is_that_of_its_metrics_and_marks() -> None:
    for case, right in (("lower", 1.0), ("keep", 0.0)):
        prompt, scores = scored(["Open"], ["OPEN"], case)
        assert scores.case == case
        assert float(scores.components["word_accuracy"]) == right
        found = all_read(prompt, scores)
        assert [found[name] for name in ("mark", "val/word_accuracy", "compare/word_accuracy")] == [right] * 3
    assert WeightedRewards({"ocr": WeightedReward(reward("keep"))}).total({"ocr": scores}).case == "keep"
    assert Scores.join([scores, scores]).case == "keep"


def test_an_evaluation_keeps_the_case_where_it_is_cut_and_merged() -> None:
    prompt, scores = scored(["Open"], ["OPEN"], "keep")
    whole = Evaluation([prompt], torch.zeros(1, 3, 2, 2), scores.values, {}, scores.texts, None, scores.case)
    unread = Evaluation([prompt], torch.zeros(0, 3, 1, 1), torch.tensor([torch.nan]), {}, None)
    assert Evaluation.merge([unread, whole.first(1).without_images()]).metrics()["word_accuracy"] == 0


def test_cvtg_2k_keeps_its_own_definition() -> None:
    wanted, read = [["CAFE\u0301"], ["DON’T", "Open"]], [["CAFÉ"], ["DON'T", "OPEN"]]
    for form, accuracy in (("cvtg", 1 / 3), ("lower", 1.0), ("keep", 2 / 3)):
        for metric in (WordAccuracy(form), NormalizedEditDistance(form=form)):
            metric.update(wanted, read)
            found = float(metric.compute())
            assert found == pytest.approx(accuracy) if isinstance(metric, WordAccuracy) else (found == 1) == (form == "lower")
    prompts = [Prompt("x", words=tuple(words), category="CVTG/2") for words in wanted]
    results = Evaluation(prompts, torch.zeros(2, 3, 2, 2), torch.ones(2), {}, read).results().measures
    assert (results["word_accuracy"], results["cvtg_word_accuracy"]) == (1.0, pytest.approx(1 / 3))
    assert results["ned"] == 1 > results["cvtg_ned"]
    with pytest.raises(ValueError, match="form must be 'cvtg', 'lower' or 'keep', got 'strict'"):
        WordAccuracy("strict")  # type: ignore[arg-type]


def test_words_of_invisible_characters_alone_are_none() -> None:
    """They are refused before training; with other rewards beside them, such images have no score."""
    prompt = Prompt("a sign", words=("\u200b\ufe0f",))
    for blind in (reward(), FlowGRPOOCR(engine=Blind())):
        with pytest.raises(ValueError, match="1 of 1 prompts have none: 'a sign'"):
            blind.check_prompts([prompt])
    skipping = FlowGRPOOCR(engine=Blind(), without_words="skip")
    assert skipping(torch.zeros(1, 3, 4, 4), [prompt]).values.isnan().all()
    assert reward().score([[]], [prompt]).values.isnan().all()
