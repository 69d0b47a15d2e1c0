"""The recipes of the public models: each is accepted as it is, and trains and draws on a tiny model of its layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.families import RECIPE_ARGUMENTS, RECIPE_PROMPTS, RECIPE_VALIDATION, innermost
from varrl_lightning.__main__ import main
from varrl_lightning.configuration.files import shipped_configs

OWN = {"quickstart.yaml", "pretrain_tokenizer.yaml", "pretrain_details.yaml", "pretrain_words.yaml"}
OWN |= {"paper.yaml", "paper_literal.yaml", "vanilla_grpo.yaml", "vanilla_panw.yaml", "prefix_only.yaml"}
OWN |= {"comparison.yaml", "comparison_m.yaml", "comparison_base.yaml"}
RECIPES = sorted(set(shipped_configs()) - OWN)
DRAWN = 'a sign "OPEN"'


DEAREST = ("infinity_2b_ocr_24gb.yaml", "infinity_8b_ocr.yaml", "llm_prefix_ocr_8gpus.yaml", "var_d16_ocr.yaml")
"""They train slowest, and are the code of infinity_2b_ocr.yaml, llm_prefix_ocr.yaml and var_d16_hpsv3.yaml with other options."""

TRAINED = [
    *(f"{name}_ocr.yaml" for name in RECIPE_ARGUMENTS),
    *("var_d16_hpsv3.yaml", "llm_prefix_ocr_8gpus.yaml", "infinity_2b_ocr_24gb.yaml"),
]
"""One recipe a family, one whose reward is a service, one that trains all weights of a family that else has an adapter, and one the
other way round."""
SCALED = {f"{name}_ocr_{gpus}gpus.yaml": gpus for name in ("infinity_2b", "llm_prefix") for gpus in (8, 64)}


def family(recipe: str) -> str:
    return re.sub(r"_(ocr|hpsv3)(_\d+(gpus|gb))?\.yaml$", "", recipe)


def shrunk(recipe: str, folder: Path) -> Path:
    """The recipe on a tiny model, on the CPU, for two steps: one prefix and one suffix update."""
    config = yaml.safe_load(shipped_configs()[recipe].read_text())
    innermost(config["model"]["policy"]).update(RECIPE_ARGUMENTS[family(recipe)](folder), dtype="float32")
    config["model"] |= {"m": 2, "group_size": 2, "alternation": ["prefix", "suffix"], "micro_batch_size": 2, "images_at_once": 4}
    if recipe.endswith("_hpsv3.yaml"):  # a service with 16 GB of weights
        config["model"]["reward"] = "tiny.LeftBright"
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in RECIPE_PROMPTS))
    (folder / "more.jsonl").write_text(json.dumps(RECIPE_VALIDATION) + "\n")
    config["data"] = {"train": str(folder / "prompts.jsonl"), "validation": str(folder / "more.jsonl"), "batch_size": 2}
    config["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "max_steps": 2, "enable_progress_bar": False}
    config["trainer"] |= {"val_check_interval": None, "default_root_dir": str(folder / "run")}
    config["trainer"] |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True))
    return path


def written(recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(shipped_configs()[recipe].read_text())
    return found


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def test_every_family_has_both_recipes() -> None:
    of_families = {f"{name}_{kind}.yaml" for name in RECIPE_ARGUMENTS for kind in ("ocr", "hpsv3")}
    assert of_families | SCALED.keys() | {"infinity_2b_ocr_24gb.yaml"} == set(RECIPES)


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


@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - set(TRAINED)))
def test_a_recipe_that_is_not_trained_says_nothing_new(recipe: str) -> None:
    """Its reward and mask are those of one that is, the rest of its model another's; what a machine is asked for is left out."""
    ours, whole = written(recipe), f"{family(recipe)}_ocr_8gpus.yaml"
    alike = written(whole if recipe in SCALED and whole in TRAINED else f"{family(recipe)}_ocr.yaml")
    if recipe.endswith("_hpsv3.yaml"):
        service = written("var_d16_hpsv3.yaml")["model"]
        assert {name: ours["model"][name] for name in ("reward", "mask_source")} == {
            name: service[name] for name in ("reward", "mask_source")
        }
        ours["model"], alike["model"] = (without(x["model"], "reward", "mask_source") for x in (ours, alike))
    assert ours["model"] == alike["model"]
    machine = ("devices", "num_nodes", "strategy")
    assert without(ours["trainer"], *machine) == without(alike["trainer"], *machine)
    assert without(ours, "model", "data", "trainer") == without(alike, "model", "data", "trainer")


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("recipe", [pytest.param(r, marks=pytest.mark.slow) if r in DEAREST else r for r in TRAINED])
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
