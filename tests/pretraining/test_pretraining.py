"""A few steps of both pre-trainings, as the configs run them but tiny."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from varrl_lightning.policies.lettering import ASSETS, CONTENT, HIDDEN, LetteringPolicy, letters_of, sign_of
from varrl_lightning.policies.lettering_sign import Sign
from varrl_lightning.pretraining.modules import PolicyPretraining, main
from varrl_lightning.pretraining.pictures import SignBatches, WordPictures, batch_of, read_words
from varrl_lightning.tokenizers.fitting import fit_codes
from varrl_lightning.types import Prompt
from varrl_lightning.weights.loading import read_tensors

EMBEDDED = ASSETS / "transformer.safetensors"
CONFIGS = Path(__file__).parents[2] / "configs"
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
    # From what the package has, not from what an earlier step of the recipe would have written.
    for key, value in {"export_at": 2, "tokenizer": str(ASSETS / "tokenizer.safetensors"), "start": str(EMBEDDED)}.items():
        if key in config["model"]["init_args"]:
            config["model"]["init_args"][key] = value
    # 512 codes are fitted to at least as many pictures.
    config["data"] |= {"batches": 16, "batch_size": 32 if name == "pretrain_tokenizer" else 4}
    config["trainer"] |= {
        "max_steps": 3,
        "limit_val_batches": 1,
        "val_check_interval": 3,
        "num_sanity_val_steps": 0,
        "logger": False,
    }
    config["trainer"] |= {"callbacks": None, "enable_checkpointing": False, "enable_progress_bar": False}
    config["trainer"] |= {"enable_model_summary": False, "default_root_dir": str(tmp_path)}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(file)]


@pytest.mark.parametrize("part", ["tokenizer", "details", "words"])
def test_a_shipped_config_runs_and_exports_what_loads(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "varrl_lightning.pretraining.modules.fit_codes", partial(fit_codes, samples=2000, iterations=3)
    )  # in seconds
    monkeypatch.setattr(sys, "argv", ["pretraining", *tiny(f"pretrain_{part}", tmp_path)])
    main()
    file = tmp_path / "out.safetensors"
    shipped = ASSETS / ("tokenizer.safetensors" if part == "tokenizer" else "transformer.safetensors")
    LetteringPolicy.from_pretrained(**({"tokenizer": file} if part == "tokenizer" else {"path": file}))
    written, before = read_tensors(file), read_tensors(shipped)
    assert {str(x.dtype) for x in written.values()} == {"torch.float16"}
    furthest = max((written[name].float() - before[name].float()).abs().max().item() for name in before)
    assert furthest > 1e-3 if part != "words" else 0 < furthest < 0.01  # words begins with what there was, at a low rate


def test_codes_that_are_given_are_kept_and_only_refine_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = ASSETS / "tokenizer.safetensors"
    command = [*tiny("pretrain_tokenizer", tmp_path), f"--model.init_args.codes={shipped}", "--data.batch_size=4"]
    monkeypatch.setattr(sys, "argv", ["pretraining", *command])
    main()
    written, before = read_tensors(tmp_path / "out.safetensors"), read_tensors(shipped)
    changed = {name for name in before if not torch.equal(written[name], before[name])}
    assert changed
    assert all(name.startswith("refine") for name in changed)


def gradient_of_letters(hide_words: bool) -> torch.Tensor:
    """The size of the cross-entropies' gradient with respect to each letter's embedding."""
    torch.manual_seed(0)
    module = PolicyPretraining(hide_words=hide_words)
    batch = batch_of([Sign(("FOX",), "red"), Sign(("OPEN", "LATE"))], 0)
    torch.stack(module.cross_entropies(batch, CONTENT, 0.0)).sum().backward()
    return module.policy.transformer.letter.weight.grad.abs().sum(dim=1)


def test_hidden_words_are_really_hidden() -> None:
    gradient = gradient_of_letters(hide_words=True)
    assert gradient[HIDDEN] > 0
    assert not gradient[:HIDDEN].any()


def test_shown_words_are_seen() -> None:
    gradient = gradient_of_letters(hide_words=False)
    shown = {0, *(ord(letter) - ord("A") + 1 for letter in "FOXOPENLATE")}
    assert set(gradient.nonzero().flatten().tolist()) == shown


def test_hiding_the_prompt_hides_colour_as_well() -> None:
    """drop = 1 is the unconditional half: the styles all read `any`; hide_words leaves them to be seen."""
    torch.manual_seed(0)
    for hide_words, drop, seen in ((True, 1.0, {0}), (True, 0.0, {0, 2})):
        module = PolicyPretraining(hide_words=hide_words)
        torch.stack(module.cross_entropies(batch_of([Sign(("FOX",), "red")], 0), CONTENT, drop)).sum().backward()
        assert set(module.policy.transformer.style.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()) == seen


def test_training_starts_with_the_weights_that_are_given(tmp_path: Path) -> None:
    module = PolicyPretraining(start=EMBEDDED)
    for name, tensor in read_tensors(EMBEDDED).items():
        torch.testing.assert_close(module.trained.state_dict()[name], tensor.float(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="does not fit"):
        PolicyPretraining(start=ASSETS / "tokenizer.safetensors")


def test_steps_of_training_lower_the_loss() -> None:
    torch.manual_seed(0)
    module = PolicyPretraining()
    batch = WordPictures(batches=1, batch_size=8).training[0]
    optimizer = torch.optim.AdamW(module.trained.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        loss = torch.stack(module.cross_entropies(batch, 4, 0.0)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_a_batch_depends_on_its_number_and_the_seed_alone() -> None:
    def batch(number: int, seed: int = 1, batches: int = 4) -> Any:
        return SignBatches(["TERSE", "FOX"], batches, batch_size=8, seed=seed, invented=0.5)[number]

    first = batch(2)
    torch.rand(3)
    assert same(first, batch(2, batches=9))
    for other in (batch(1), batch(2, seed=2)):
        assert not torch.equal(first.letters, other.letters)
        assert not torch.equal(first.images, other.images)


def test_ids_of_a_batch_are_those_of_the_prompt_that_asks_for_it() -> None:
    """A batch and `encode_prompts` give the same letters and styles."""
    text = 'a blue metal sign that says "OPEN LATE"'
    cond = LetteringPolicy().encode_prompts([Prompt(text)])
    batch = batch_of([sign_of(Prompt(text))], 0)
    assert torch.equal(batch.letters, cond.tensors["letters"])
    assert torch.equal(batch.styles, cond.tensors["styles"])


def words_of(data: SignBatches) -> set[str]:
    """Every word of every batch, read from its letters, line by line."""
    rows = torch.cat([data[b].letters for b in range(len(data))])
    lines = ("".join(chr(64 + i) for i in line if i) for row in rows.view(-1, 3, 5).tolist() for line in row)
    return {line for line in lines if line}


def test_held_out_words_are_never_drawn() -> None:
    pictures = WordPictures(batches=12, batch_size=64, invented=0.4).training
    held_out = {word for split in ("train", "validation", "test") for word in read_words(ASSETS / f"{split}.jsonl")}
    assert pictures.forbidden == held_out
    words = words_of(pictures)
    assert not held_out.intersection(words)
    assert words.intersection(read_words(ASSETS / "pretraining.jsonl"))
    assert words.difference(read_words(ASSETS / "pretraining.jsonl"))  # the invented ones


def test_invented_words_avoid_the_forbidden_ones() -> None:
    first = frozenset(words_of(SignBatches([], batches=1, batch_size=30, seed=0, invented=1.0)))
    assert first
    assert not first.intersection(words_of(SignBatches([], 1, 30, 0, 1.0, first)))


def test_letters_are_read_back() -> None:
    """What the two tests above read words from: id 1 is A."""
    assert letters_of(Sign(("FOX",)))[5:10] == [0, 6, 15, 24, 0]


def test_leaking_splits_are_refused(tmp_path: Path) -> None:
    leaky = tmp_path / "pretraining.jsonl"
    leaky.write_text(json.dumps({"text": f'"{read_words(ASSETS / "test.jsonl")[0]}"'}) + "\n")
    with pytest.raises(ValueError, match="holds 1 words of the held-out files"):
        WordPictures(batches=1, train=leaky)
