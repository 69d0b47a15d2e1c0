"""The tutorial plugin and the example of a custom reward, used as a reader would."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import Fresh

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "plugins" / "varrl-brightness"
EXAMPLE = ROOT / "examples" / "custom_reward"

USE = """
import torch
from varrl_lightning.registry import REWARDS, available
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt
print(available(REWARDS)["brightness"])
images = torch.stack([torch.full((3, 4, 4), 0.25), torch.ones(3, 4, 4)])
print(WeightedRewards.from_spec("brightness")(images, [Prompt("a")] * 2).values.tolist())
"""


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="builds with setuptools, which torch brings")
def test_the_plugin_is_installed_by_pip_and_found_by_name(tmp_path: Path, fresh: Fresh) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PLUGIN, source)  # building leaves files beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run([*pip, "--target", str(target), str(source)])
    assert fresh(USE, path=target).stdout.splitlines() == ["varrl_brightness 0.1.0", "[0.25, 1.0]"]


def test_the_plugin_is_two_files() -> None:
    kept = {path.name for path in PLUGIN.iterdir()} - {"__pycache__", "build", "varrl_brightness.egg-info"}
    assert kept == {"pyproject.toml", "varrl_brightness.py"}


def test_the_example_runs_from_its_folder(fresh: Fresh) -> None:
    done = fresh(f"import os, runpy; os.chdir({str(EXAMPLE)!r}); runpy.run_path('centred.py', run_name='__main__')", path=EXAMPLE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["middle", "1.00", "left", "0.24", "empty", "no", "score"]
    assert "the reward 'Centred' gave no score to some images" in done.stderr
