"""A few steps of both pre-trainings, as the configs run them but tiny."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from varrl_lightning.policies.lettering import ASSETS, LETTERING, RANKS, LetteringPolicy
from varrl_lightning.pretraining import PolicyPretraining, main
from varrl_lightning.tokenizers.multiscale_vq import MultiScaleVQ
from varrl_lightning.weights import load_strictly, read_tensors
from varrl_lightning.word_pictures import WordBatches, WordPictures, read_words

CONFIGS = Path(__file__).parent.parent / "configs"
# Lightning's own suggestions, which these few steps have no use for, and its own use of jsonargparse.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    # A policy has no training mode.
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]


def tiny(name: str, tmp_path: Path) -> list[str]:
    """Command-line arguments for three steps of a shipped config."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config["model"]["init_args"]["export"] = str(tmp_path / "out.safetensors")
    if "export_at" in config["model"]["init_args"]:
        config["model"]["init_args"]["export_at"] = 2
    config["data"] |= {"batches": 8, "batch_size": 80}
    config["trainer"] |= {"max_steps": 3, "limit_val_batches": 1, "val_check_interval": 3, "logger": False}
    config["trainer"] |= {"callbacks": None, "enable_checkpointing": False, "enable_progress_bar": False}
    config["trainer"] |= {"enable_model_summary": False, "default_root_dir": str(tmp_path)}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(file)]


@pytest.mark.parametrize("part", ["tokenizer", "policy"])
def test_a_shipped_config_runs_and_exports_what_loads(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pretraining", *tiny(f"pretrain_{part}", tmp_path)])
    main()
    if part == "tokenizer":
        load_strictly(MultiScaleVQ(LETTERING, ranks=RANKS), read_tensors(tmp_path / "out.safetensors"), source="out")
    else:
        LetteringPolicy.from_pretrained(tmp_path / "out.safetensors")


def test_steps_of_training_lower_the_loss() -> None:
    torch.manual_seed(0)
    module = PolicyPretraining()
    batch = WordPictures(batches=1, batch_size=16).training[0]
    optimizer = torch.optim.AdamW(module.trained.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        loss = torch.stack(module.cross_entropies(batch, 4, 0.0)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_a_batch_depends_on_its_number_alone() -> None:
    data = WordBatches(["TERSE", "FOX"], batches=4, batch_size=8, seed=1, invented=0.5)
    images, words = data[2]
    again, same = WordBatches(["TERSE", "FOX"], batches=9, batch_size=8, seed=1, invented=0.5)[2]
    assert words == same
    assert torch.equal(images, again)
    assert data[1][1] != words


def test_held_out_words_are_never_drawn() -> None:
    pictures = WordPictures(batches=40, batch_size=64, invented=0.4).training
    held_out = set(read_words(ASSETS / "validation.jsonl")) | set(read_words(ASSETS / "test.jsonl"))
    assert pictures.forbidden == held_out
    assert not held_out.intersection(word for b in range(len(pictures)) for word in pictures[b][1])


def test_invented_words_avoid_the_forbidden_ones() -> None:
    data = WordBatches([], batches=1, batch_size=30, seed=0, invented=1.0)
    first = frozenset(data[0][1])
    assert not first.intersection(WordBatches([], 1, 30, 0, 1.0, first)[0][1])


def test_leaking_splits_are_refused(tmp_path: Path) -> None:
    leaky = tmp_path / "train.jsonl"
    leaky.write_text(json.dumps({"text": f'"{read_words(ASSETS / "test.jsonl")[0]}"'}) + "\n")
    with pytest.raises(ValueError, match="holds 1 words of the held-out files"):
        WordPictures(batches=1, train=leaky)
