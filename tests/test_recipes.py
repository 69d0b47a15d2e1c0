"""The recipes of the public models: each is accepted as it is, and trains and draws on a tiny model of its layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from parity import rules
from parity.make_infinity import state as infinity_weights
from parity.seeded import seeded
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from varrl_lightning.__main__ import main
from varrl_lightning.configuration.files import shipped_configs
from varrl_lightning.policies.llm_prefix import LLMPrefixPolicy
from varrl_lightning.policies.tokenflow import NEGATIVE
from varrl_lightning.text_encoders import EncodedTexts

PARITY = Path(__file__).parent / "parity" / "data"
OWN = {"quickstart.yaml", "pretrain_tokenizer.yaml", "pretrain_details.yaml", "pretrain_words.yaml"}
OWN |= {"paper.yaml", "vanilla_grpo.yaml", "vanilla_panw.yaml", "prefix_only.yaml", "comparison.yaml"}
RECIPES = sorted(set(shipped_configs()) - OWN)
WORDS = ("OPEN", "SALE", "EXIT", "MENU")
PROMPTS = [{"text": f'a sign "{word}"', "label": label} for label, word in enumerate(WORDS)]
VALIDATION = {"text": 'a sign "SHOP"', "label": 5}
TEXTS = ["", *(prompt["text"] for prompt in PROMPTS), VALIDATION["text"]]
DRAWN = 'a sign "OPEN"'


class Features(nn.Module):
    """Made-up features of a text, of an encoder's widths."""

    def __init__(self, text: tuple[int, int], pooled: int | None = None) -> None:
        super().__init__()
        self.text, self.pooled = text, pooled

    def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
        (text,) = texts
        found = {"text": seeded(text, self.text)[None], "mask": torch.ones(1, self.text[0], dtype=torch.bool)}
        return found if self.pooled is None else found | {"pooled": seeded(f"{text} ", (self.pooled,))[None]}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(PARITY / f"{name}.pt", weights_only=True)
    return found


def files(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    for name, seed in (("transformer", rules.TRANSFORMER), ("tokenizer", rules.TOKENIZER)):
        torch.save(rules.weights(data["layouts"][name], seed), folder / f"{name}.pth")
    return {"path": str(folder / "transformer.pth"), "tokenizer": str(folder / "tokenizer.pth")}


def encoded(folder: Path, encoder: nn.Module) -> str:
    EncodedTexts.save(encoder, TEXTS, folder / "texts.safetensors")
    return str(folder / "texts.safetensors")


def var(folder: Path) -> dict[str, Any]:
    data = read("var_l2norm")
    return files(folder, data)


def switti(folder: Path) -> dict[str, Any]:
    data = read("switti_default")
    sizes = {name: data["config"][name] for name in ("num_heads", "rope_theta", "rope_size")}
    return files(folder, data) | sizes | {"text_encoder": encoded(folder, Features((77, 2048), 1280))}


def infinity(variant: str) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        data = read(variant)
        torch.save(infinity_weights(data["shapes"]), folder / "transformer.pth")
        torch.save({"vae": infinity_weights(data["vae_shapes"])}, folder / "vae.pth")
        width = data["shapes"]["text_norm.weight"][0]
        return {
            "path": str(folder / "transformer.pth"),
            "tokenizer": str(folder / "vae.pth"),
            "text_encoder": encoded(folder, Features((5, width))),
            "pixels": "0.06M",
            "level_embedding": "first" if data["variant"]["first_block_only"] else "every",
        }

    return write


def tokenflow(folder: Path) -> dict[str, Any]:
    data = read("tokenflow_plain")
    ids = {text: [5 + i, 7, 9, 11] for i, text in enumerate([*TEXTS, NEGATIVE])}
    sizes = {name: data["config"][name] for name in ("rope_theta", "rms_norm_eps")}
    start = {"image_token_start": data["config"]["text_tokens"], "schedule": list(data["config"]["sides"])}
    return files(folder, data) | {"text_encoder": ids} | sizes | start


def llm_prefix(folder: Path) -> dict[str, Any]:
    sizes = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes)
    tokenizer = read("var_plain")["layouts"]["tokenizer"]
    save_file(rules.weights(tokenizer, rules.TOKENIZER), folder / "visual.safetensors")
    policy = LLMPrefixPolicy.from_backbone(LlamaForCausalLM(config), folder / "visual.safetensors", {}, schedule=[1, 2, 3, 4, 6])
    save_file(policy.published(policy.transformer.state_dict()), folder / "llm.safetensors")
    config.save_pretrained(folder)
    return {
        "path": str(folder / "llm.safetensors"),
        "tokenizer": str(folder / "visual.safetensors"),
        "backbone": str(folder),
        "text_encoder": {text: [1 + i, 2] for i, text in enumerate(TEXTS)},
        "schedule": [1, 2, 3, 4, 6],
    }


TINY: dict[str, Callable[[Path], dict[str, Any]]] = {
    "var_d16": var,
    "switti": switti,
    "infinity_2b": infinity("infinity_published_2b"),
    "infinity_8b": infinity("infinity_published_8b"),
    "tokenflow": tokenflow,
    "llm_prefix": llm_prefix,
}


SCALED = {f"{name}_ocr_{gpus}gpus.yaml": gpus for name in ("infinity_2b", "llm_prefix") for gpus in (8, 64)}


def family(recipe: str) -> str:
    return re.sub(r"_(ocr|hpsv3)(_\d+gpus)?\.yaml$", "", recipe)


def innermost(policy: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the family's own class, inside of those of an adapter."""
    arguments: dict[str, Any] = policy["init_args"]
    return innermost(arguments["policy"]) if "policy" in arguments else arguments


def shrunk(recipe: str, folder: Path) -> Path:
    """The recipe on a tiny model, on the CPU, for two steps: one prefix and one suffix update."""
    config = yaml.safe_load(shipped_configs()[recipe].read_text())
    innermost(config["model"]["policy"]).update(TINY[family(recipe)](folder), dtype="float32")
    config["model"] |= {"m": 2, "group_size": 2, "alternation": ["prefix", "suffix"], "micro_batch_size": 2, "images_at_once": 4}
    if recipe.endswith("_hpsv3.yaml"):  # a service with 16 GB of weights
        config["model"]["reward"] = "tiny.LeftBright"
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    (folder / "more.jsonl").write_text(json.dumps(VALIDATION) + "\n")
    config["data"] = {"train": str(folder / "prompts.jsonl"), "validation": str(folder / "more.jsonl"), "batch_size": 2}
    config["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "max_steps": 2, "enable_progress_bar": False}
    config["trainer"] |= {"val_check_interval": None, "default_root_dir": str(folder / "run")}
    config["trainer"] |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True))
    return path


def test_every_family_has_both_recipes() -> None:
    assert {f"{name}_{kind}.yaml" for name in TINY for kind in ("ocr", "hpsv3")} | SCALED.keys() == set(RECIPES)


@pytest.mark.parametrize("recipe", SCALED)
def test_the_groups_of_a_recipe_for_many_gpus_are_whole(recipe: str) -> None:
    config = yaml.safe_load(shipped_configs()[recipe].read_text())
    trainer, branches = config["trainer"], config["data"]["batch_size"] * config["model"]["group_size"]
    ranks = trainer["devices"] * trainer.get("num_nodes", 1)
    assert ranks == SCALED[recipe]
    each, rest = divmod(branches, ranks)
    assert rest == 0
    assert each % config["model"]["group_size"] == 0
    says = " ".join(line.strip("# ") for line in shipped_configs()[recipe].read_text().splitlines() if line.startswith("#"))
    assert f"= {branches} branches: {each} on each GPU" in says


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_accepted_as_it_is(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", recipe, "--print_config"])
    assert stopped.value.code in (None, 0)
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(shipped_configs()[recipe].read_text())
    assert printed["model"]["m"] == written["model"]["m"]
    found = innermost(printed["model"]["policy"])
    assert {name: found[name] for name in innermost(written["model"]["policy"])} == innermost(written["model"]["policy"])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_and_its_policy_draws(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(shrunk(recipe, tmp_path))]) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    held = torch.load(last, weights_only=True)
    assert held["varrl"]["updates_done"] == 2
    assert held["varrl"]["bad_steps"] == 0
    config = ["--config", "run/config.yaml", "--ckpt_path", str(last)]
    prompt = "goldfish" if recipe.startswith("var") else DRAWN
    assert main(["predict", *config, "--prompt", prompt, "--output", "pictures"]) == 0
    assert len(list((tmp_path / "pictures").glob("0001_*.png"))) == 1
    assert main(["export", *config, "--output", "exported.safetensors"]) == 0
