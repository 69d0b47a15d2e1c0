"""Policies, rewards and optimizers with one fault each, and what the doctor finds in a run that is clean but for one of them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from torch import Tensor

from tests.tiny import PROMPTS, LeftBright, TinyPolicy, TinyTransformer, tiny_module, tiny_policy
from varrl_lightning.commands.doctor import examine
from varrl_lightning.commands.doctor_checklist import checklist, made
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_patient import Patient
from varrl_lightning.commands.doctor_prompts import prompts_are_fit
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.data import PromptDataModule
from varrl_lightning.policies.lettering import LetteringPolicy
from varrl_lightning.policies.lora import add_lora
from varrl_lightning.rewards.base import BaseReward, Reading
from varrl_lightning.types import Prompt, Score

HERE = "tests.faults"
TRAINER = {"accelerator": "cpu", "devices": "auto", "num_nodes": 1, "max_steps": 100, "max_epochs": None, "max_time": None}
TRAINER |= dict.fromkeys(("callbacks", "val_check_interval", "limit_train_batches", "limit_val_batches"))


def files(folder: Path) -> dict[str, Any]:
    """Arguments of the data of a clean configuration, whose files are written."""
    rows = [json.dumps({"text": prompt.text}) + "\n" for prompt in PROMPTS]
    (folder / "train.jsonl").write_text("".join(rows[:4]))
    (folder / "validation.jsonl").write_text("".join(rows[4:]))
    return {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl"), "batch_size": 2}


def patient(folder: Path, *, data: dict[str, Any] | None = None, trainer: dict[str, Any] | None = None, **model: Any) -> Patient:
    """The tiny policy with a KL and clean prompts, but for what is given."""
    made = tiny_module(**({"kl_coef": 0.01, "score": Score("sampler"), "num_continuations": 1} | model))
    of_run = Namespace(**(TRAINER | {"default_root_dir": str(folder / "runs")} | (trainer or {})))
    return Patient(made, PromptDataModule(**(files(folder) | (data or {}))), of_run)


def findings(of: Patient, *names: str) -> dict[str, Finding]:
    """Those of some checks that need the model, each made alone; of all where none is named."""
    found = {}
    if not names or "prompts" in names:
        found["prompts"] = made("prompts", lambda: prompts_are_fit(of.model, of.data))
    else:
        of.data.setup("fit")
    for name, check in checklist(of, None, lambda: 0.0) if set(names) != {"prompts"} else ():
        if not names or name in names:
            with torch.no_grad():
                found[name] = made(name, check)
    return found


def finding(folder: Path, name: str, **changes: Any) -> Finding:
    """That of one check, of the clean patient but for these changes."""
    return findings(patient(folder, **changes), name)[name]


def written(folder: Path, **model: Any) -> Path:
    """The same as a configuration file; `data` and `trainer` change those parts."""
    data, trainer = files(folder) | model.pop("data", {}), model.pop("trainer", {})
    own = {"policy": {"class_path": "tests.tiny.tiny_policy"}, "reward": f"{HERE}.ReadsWords", "mask_source": "full", "m": 2}
    own |= {"group_size": 4, "num_continuations": 1, "kl_coef": 0.01, "score": "sampler", "evaluate_with": "tests.tiny.LeftBright"}
    own |= {"sampling": {"top_k": 8}}
    trainer = {"accelerator": "cpu", "max_steps": 100, "default_root_dir": str(folder / "runs")} | trainer
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump({"model": own | model, "data": data, "trainer": trainer}))
    return path


def examined(folder: Path, **model: Any) -> dict[str, Finding]:
    """All findings of a configuration, by name, as the command makes them."""
    return {found.check: found for found in examine(ParsedConfig(["fit", "--config", str(written(folder, **model))]))}


# --- policies -----------------------------------------------------------------------------------------------------------------


def wrong_vae() -> LetteringPolicy:
    """The embedded model with its codes in another order: pictures are reconstructed as before."""
    made = LetteringPolicy.from_pretrained()
    order = torch.randperm(made.vocab_size, generator=torch.Generator().manual_seed(0))
    for codes in made.tokenizer.codes:
        codes.data = codes.data[order]
    return made


class Bgr(LetteringPolicy):
    """Decodes to BGR, as OpenCV has it."""

    def decode_latent(self, latent: Tensor) -> Tensor:
        return super().decode_latent(latent).flip(1)


class SignedPixels(LetteringPolicy):
    """Decodes to [-1, 1], as diffusion models have it."""

    def decode_latent(self, latent: Tensor) -> Tensor:
        return 2 * super().decode_latent(latent) - 1


class _Listening(torch.nn.Dropout):
    def train(self, mode: bool = True) -> _Listening:
        self.training = True
        return self


def dropout_on() -> TinyPolicy:
    """A dropout that no call of `eval` switches off."""
    made = tiny_policy()
    made.transformer.blocks[0].mlp.append(_Listening(0.5))
    return made


class BatchStatistics(TinyPolicy):
    """Features are centred over the rows of a micro-batch."""

    def span_features(self, *arguments: Any) -> list[Tensor]:
        return [x - 0.1 * x.mean(dim=0, keepdim=True) for x in super().span_features(*arguments)]


class Shifted(TinyPolicy):
    """Teacher forcing is wrong from the third scale on."""

    def span_features(self, inputs: Any, tokens: Any, start: int, stop: int, schedule: Any) -> list[Tensor]:
        features = super().span_features(inputs, tokens, start, stop, schedule)
        return [x + 0.01 * (start + i >= 2) for i, x in enumerate(features)]


class _Broken(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, torch.nan)


class NanAtAScale(TinyPolicy):
    """The third scale's gradient alone is not finite; all that is sampled and scored is right."""

    def span_features(self, inputs: Any, tokens: Any, start: int, stop: int, schedule: Any) -> list[Tensor]:
        features = super().span_features(inputs, tokens, start, stop, schedule)
        return [_Broken.apply(x) if start + i == 2 else x for i, x in enumerate(features)]  # type: ignore[no-untyped-call]


class Disconnected(TinyPolicy):
    """The words of a prompt are read under no_grad."""

    def start_cache(self, inputs: Any, schedule: Any) -> Any:
        with torch.no_grad():
            return super().start_cache(inputs, schedule)


class Restless(TinyPolicy):
    """Scoring moves a weight, as running statistics do."""

    def logits(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            self.transformer.blocks[0].mlp[0].bias += 1e-4
        return super().logits(features)


def frozen_parameter() -> TinyPolicy:
    made = tiny_policy()
    made.transformer.blocks[1].mlp.requires_grad_(False)
    return made


def all_frozen() -> TinyPolicy:
    made = tiny_policy()
    made.requires_grad_(False)
    return made


def other_model() -> TinyPolicy:
    return tiny_policy(seed=1)


def missing_tensor() -> TinyPolicy:
    """All but the head are loaded from the weights of another policy."""
    trained, transformer = tiny_policy(), TinyTransformer()
    torch.seed()
    transformer = TinyTransformer()
    state = {name: x for name, x in trained.transformer.state_dict().items() if not name.startswith("head.")}
    transformer.load_state_dict(state, strict=False)
    return TinyPolicy(transformer, trained.tokenizer)


def with_adapter() -> TinyPolicy:
    torch.manual_seed(0)
    return add_lora(tiny_policy(), rank=2)  # type: ignore[return-value]


def adapter_not_reset() -> TinyPolicy:
    """The adapter of a former run is still there."""
    made = with_adapter()
    for name, parameter in made.transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return made


def merged_adapter() -> TinyPolicy:
    """The adapter is merged into the base when it is loaded, and no one takes it out again but PEFT itself."""
    made = adapter_not_reset()
    for module in made.transformer.modules():
        if hasattr(module, "lora_A") and hasattr(module, "merge"):
            module.merge()
    return made


def trained_base() -> TinyPolicy:
    made = with_adapter()
    made.transformer.requires_grad_(True)
    return made


# --- rewards ------------------------------------------------------------------------------------------------------------------


class Dead:
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise ConnectionError("no connection to the scorer")


class NotANumber:
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.new_full((len(images),), torch.nan)


class Constant:
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.new_full((len(images),), 0.25)


class Dice(LeftBright):
    """Adds chance to its score."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__(images, prompts) + 0.1 * torch.rand(len(images), generator=self.generator)


class Slow(LeftBright):
    """Takes its time."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        time.sleep(0.5)
        return super().__call__(images, prompts)


class SomeGroups(LeftBright):
    """Tells the images of one call in four apart."""

    def __init__(self) -> None:
        self.whole_groups = True
        self.calls = itertools.count()

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__(images, prompts) * (next(self.calls) % 4 == 0)


class ReadsWords(BaseReward):
    """Scores prompts with words alone, and reads what is drawn."""

    reads_words = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return LeftBright()(images, prompts)

    def can_score(self, prompt: Prompt) -> bool:
        return bool(prompt.words)

    def read_back(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Reading | None]:
        return [Reading(prompt.words[0], True) for prompt in prompts]


class BrokenReader(ReadsWords):
    def read_back(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Reading | None]:
        return [Reading("#", False) for _ in prompts]


# --- optimizers ---------------------------------------------------------------------------------------------------------------


class Forgetful(torch.optim.SGD):
    """Takes the first parameter alone."""

    def __init__(self, params: Iterable[Any], lr: float = 0.1) -> None:
        super().__init__(list(params)[:1], lr=lr)
