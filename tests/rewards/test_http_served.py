"""The client of the reward service against a real one, which is killed and comes back."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from tests.callbacks.running import datamodule, small_module, trainer
from tests.rewards.scripted_service import IMAGES, KEY, PROMPTS
from tests.served import Service, free_port, service
from tests.tiny import LeftBright, weights
from varrl_lightning.callbacks import Checkpoints, SafeStop
from varrl_lightning.errors import RewardError
from varrl_lightning.module import VARGRPO
from varrl_lightning.rewards.base import score_images
from varrl_lightning.rewards.http import HttpReward
from varrl_lightning.types import Prompt, Scores


class Rounded(LeftBright):
    """`LeftBright` of what a PNG holds."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__((images.clamp(0, 1) * 255).round() / 255, prompts)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    pytest.importorskip("litserve", reason="the extra 'serve'")
    folder = tmp_path_factory.mktemp("service")
    arguments = ("--init_args", json.dumps({"folder": str(folder)}))
    with service("tests.served.Hangs", *arguments, folder=folder, key=KEY) as running:
        yield running


def of(served: Service, **options: Any) -> HttpReward:
    return HttpReward(**{"url": served.url, "api_key": KEY, "backoff": 0.1, "patience": 120.0} | options)


def run(folder: Path, reward: Any, during: Callable[[int], None] = lambda step: None, ckpt_path: str | None = None) -> VARGRPO:
    """Three steps, with something happening before the rewards of each."""
    module = small_module(reward=reward)
    ask = module.rewards.score_all

    def score_all(images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Scores]:
        during(module.rollouts_done)
        return ask(images, prompts)

    module.rewards.score_all = score_all  # type: ignore[method-assign]
    fitted = trainer(folder, [SafeStop(), Checkpoints(50)], 3, limit_val_batches=0)
    fitted.fit(module, datamodule=datamodule(folder / "data"), ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return weights(run(tmp_path_factory.mktemp("undisturbed"), Rounded()))


def test_the_service_says_what_the_reward_says(served: Service) -> None:
    images, prompts = torch.rand(12, 3, 16, 24), [Prompt(str(i // 4)) for i in range(12)]
    reward = of(served)
    reward.check_prompts(prompts)
    scores = score_images(reward, images, prompts, "http")
    torch.testing.assert_close(scores.values, Rounded()(images, prompts), rtol=0, atol=0)


def test_a_wrong_key_is_said_before_training(served: Service) -> None:
    for reward in (of(served, api_key="wrong"), of(served, api_key="")):
        with pytest.raises(ValueError, match=r"it answered 401 .*Set VARRL_API_KEY to its key"):
            reward.check_prompts(PROMPTS)
        with pytest.raises(RewardError, match="401"):
            reward(IMAGES, PROMPTS)


def test_a_service_that_is_not_there_is_said_before_training(served: Service) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match=r"no reward service answers .*Start one with `python -m varrl_lightning serve"):
        of(served, url=nowhere).check_prompts(PROMPTS)
    of(served, url=[nowhere, served.url]).check_prompts(PROMPTS)


def test_killed_in_the_middle_of_a_request_the_run_waits_and_no_step_becomes_wrong(
    served: Service, tmp_path: Path, undisturbed: Tensor
) -> None:
    folder = served.log.parent
    restarted = threading.Event()

    def disturb() -> None:
        while not (folder / "hung").exists():
            time.sleep(0.02)
        served.kill()
        time.sleep(0.5)
        served.start()
        restarted.set()

    def during(step: int) -> None:
        if step == 1:
            (folder / "armed").touch()
            threading.Thread(target=disturb, daemon=True).start()

    with pytest.warns(UserWarning, match="reward service") as said:
        module = run(tmp_path, of(served), during)
    assert restarted.is_set()
    messages = [str(w.message) for w in said if "reward service" in str(w.message)]
    assert len(messages) == 2, messages
    assert "no reward service answers" in messages[0]
    assert "the reward service is back after" in messages[1]
    assert torch.equal(weights(module), undisturbed)


@pytest.mark.slow
def test_when_it_never_is_back_the_run_stops_with_its_state_saved(served: Service, tmp_path: Path, undisturbed: Tensor) -> None:
    served.wait()
    with (
        pytest.warns(UserWarning, match="no reward service answers"),
        pytest.raises(RewardError, match="no reward service has answered for 1 seconds"),
    ):
        run(tmp_path, of(served, patience=1.0), lambda step: served.kill() if step == 1 else None)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["varrl"]["rollouts_done"] == 1
    served.start()
    served.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", category=FutureWarning)
        module = run(tmp_path, of(served), ckpt_path=str(last))
    assert torch.equal(weights(module), undisturbed)


def test_killed_alone_a_service_takes_its_processes_along(served: Service) -> None:
    """The last test: it ends the service."""
    assert served.process is not None
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert len(family) >= 3  # LitServe's manager, a worker, an HTTP server
    served.process.kill()
    served.process.wait()
    assert not psutil.wait_procs(family, timeout=20)[1]
