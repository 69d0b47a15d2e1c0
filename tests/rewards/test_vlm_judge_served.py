"""`vlm_judge` against a real server and real weights: a tiny vision-language model behind `transformers serve`. Costs 15 seconds.

`transformers serve` answers no log-probabilities (it warns and leaves them out): for these the test serves the same weights itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tests.rewards.chat_servers import chat_server, completion, pictures_of, text_of
from tests.rewards.tiny_judge import WORDS, write_judge
from tests.served import STARTING, free_port
from varrl_lightning.rewards.judge_answers import AnswerReader
from varrl_lightning.rewards.vlm_judge import VLMJudge
from varrl_lightning.types import Prompt

QUESTION = "Is it {text}? yes or no"
PROMPTS = [Prompt("a cat"), Prompt("a tea 'POT'")] * 4
WORD = AnswerReader(choices={"yes": 1.0, "no": 0.0})
DEGREE = AnswerReader(tokens={"yes": 1.0, "no": 0.0}, min_mass=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    folder = tmp_path_factory.mktemp("judge")
    write_judge(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Eight images of another size than the model's."""
    noise = torch.rand(8, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(0.1, 1, 8)[:, None, None, None]


class Model:
    """The same weights in this process."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
        self.processor: Any = LlavaProcessor.from_pretrained(folder)

    def log_probs(self, text: str, pictures: list[Any]) -> torch.Tensor:
        """Of the first token of the answer."""
        content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": text}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits: torch.Tensor = self.model(**inputs).logits[0, -1]
        return logits.log_softmax(-1)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """The weights that are served."""
    return Model(folder)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    """The address of `transformers serve`."""
    port = free_port()
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        folder,
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    """Wait until a page answers."""
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")


def eight_bits(images: torch.Tensor) -> list[Any]:
    """Images as a judge sees them."""
    return list((images * 255).round().byte().permute(0, 2, 3, 1).numpy())


def test_a_real_server_gives_the_answers_of_its_model(served: str, folder: Path, model: Model, images: torch.Tensor) -> None:
    expected = []
    for picture, prompt in zip(eight_bits(images), PROMPTS, strict=True):
        best = int(model.log_probs(QUESTION.format(text=prompt.text), [picture]).argmax())
        assert WORDS[best] in ("yes", "no")
        expected.append(float(WORDS[best] == "yes"))
    assert 0 < sum(expected) < 8
    for parallel in (1, 8):
        reward = VLMJudge(served, str(folder), question=QUESTION, read=WORD, max_tokens=1, parallel=parallel)
        reward.check_prompts(PROMPTS)
        assert reward(images, PROMPTS).values.tolist() == expected
        assert reward.client.usage.asked == 8
        assert reward.client.usage.completion_tokens == 8
        assert reward.client.usage.prompt_tokens > 8 * len(QUESTION)


def test_a_real_server_compares_two_images(served: str, folder: Path, model: Model, images: torch.Tensor) -> None:
    prompt = Prompt("a cat")
    pictures = eight_bits(images[:3])
    reward = VLMJudge(served, str(folder), question="Is it better as {text}?", read=WORD, max_tokens=1, pairwise=True)
    wins = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            if i != j:
                wins[i, j] = said_yes(model, "Is it better as a cat?", pictures[i], pictures[j])
    expected = [sum((wins[i, j] + 1 - wins[j, i]) / 2 for j in range(3) if j != i) / 2 for i in range(3)]
    assert reward(images[:3], [prompt] * 3).values.tolist() == pytest.approx(expected)


def said_yes(model: Model, question: str, first: Any, second: Any) -> float:
    """What the model answers about two images."""
    content = [
        {"type": "text", "text": "Image 1:"},
        {"type": "image", "image": first},
        {"type": "text", "text": "Image 2:"},
        {"type": "image", "image": second},
        {"type": "text", "text": question},
    ]
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return float(WORDS[int(model.model(**inputs).logits[0, -1].argmax())] == "yes")


def test_a_server_without_log_probabilities_is_named_before_training(served: str, folder: Path) -> None:
    reward = VLMJudge(served, str(folder), question=QUESTION, read=DEGREE, max_tokens=1)
    with pytest.raises(ValueError, match="the server gave no log-probabilities; `tokens` needs a server that answers `logprobs`"):
        reward.check_prompts(PROMPTS)


def test_expected_values_are_those_of_the_models_probabilities(model: Model, images: torch.Tensor) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        """As the protocol has it, from the model's own logits."""
        log_probs = model.log_probs(text_of(request), pictures_of(request))
        top = log_probs.topk(request["top_logprobs"])
        likeliest = [{"token": WORDS[i], "logprob": p} for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
        whole = completion(likeliest[0]["token"])
        whole["choices"][0]["logprobs"] = {"content": [{**likeliest[0], "top_logprobs": likeliest}]}
        return whole

    expected = []
    for picture, prompt in zip(eight_bits(images), PROMPTS, strict=True):
        p = model.log_probs(QUESTION.format(text=prompt.text), [picture]).exp()
        yes, no = p[WORDS.index("yes")], p[WORDS.index("no")]
        expected.append(float(yes / (yes + no)))
    assert len({round(value, 3) for value in expected}) > 4
    with chat_server(answer) as server:
        every = {"top_logprobs": len(WORDS)}  # of these weights the one word is the likeliest, the other the least likely
        reward = VLMJudge(server.url, question=QUESTION, read=DEGREE, max_tokens=1, parallel=1, request=every)
        assert reward(images, PROMPTS).values.tolist() == pytest.approx(expected, abs=1e-5)
