"""Every shipped configuration says in its first line how far it has been seen, and so does the table of the site."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.families import RECIPE_ARGUMENTS
from varrl_lightning.configuration.files import configs_folder
from varrl_lightning.configuration.shipped import LEVELS, PARSED, RUN, STEPS, described, shipped
from varrl_lightning.errors import ConfigError

ROOT = Path(__file__).parents[2]
RESULTS = {
    "quickstart.yaml": "examples/quickstart/seed0/summary.json",
    "pretrain_tokenizer.yaml": "varrl_lightning/assets/lettering/tokenizer.safetensors",
    "pretrain_details.yaml": "varrl_lightning/assets/lettering/transformer.safetensors",
    "pretrain_words.yaml": "varrl_lightning/assets/lettering/transformer.safetensors",
    "variants/agreement.yaml": "examples/agreement/start.json",
}
"""Configurations that ran to their result, and a file of the repository that the run left."""


def stepped() -> set[str]:
    """The recipes that tests/test_recipes.py trains; read, since no test module imports another."""
    tree = ast.parse((ROOT / "tests" / "test_recipes.py").read_text(encoding="utf-8"))
    (value,) = (x.value for x in tree.body if isinstance(x, ast.Assign) and ast.unparse(x.targets[0]) == "TRAINED")
    return set(eval(compile(ast.Expression(value), "TRAINED", "eval"), {"RECIPE_ARGUMENTS": RECIPE_ARGUMENTS}))


def test_each_configuration_says_how_far_it_has_been_seen() -> None:
    assert {x.name for x in shipped()} == {x.relative_to(configs_folder()).as_posix() for x in configs_folder().rglob("*.yaml")}
    assert [x.name for x in shipped() if not x.about] == []


def test_no_configuration_claims_more_than_was_seen() -> None:
    levels = {level: {x.name for x in shipped() if x.seen == level} for level in LEVELS}
    assert levels[RUN] == set(RESULTS)
    assert levels[STEPS] == stepped()
    assert [result for result in RESULTS.values() if not (ROOT / result).is_file()] == []
    assert len(levels[PARSED]) > 1


def test_the_table_of_the_site_has_every_configuration_at_its_level() -> None:
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.yaml)` \| .+ \| ([^|]+) \|$", page, flags=re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert dict(rows) == {x.name: x.seen for x in shipped()}
    explained = re.findall(r"^\| ([^|`]+) \| [^|]+ \|$", page.split("## The embedded model")[0], flags=re.MULTILINE)
    assert explained == ["level", *LEVELS]


@pytest.mark.parametrize("path", sorted((configs_folder() / "variants").glob("*.yaml")), ids=lambda path: path.stem)
def test_variants_are_parsed(path: Path) -> None:
    assert all(isinstance(changes, dict) for changes in yaml.safe_load(path.read_text(encoding="utf-8")).values())


@pytest.mark.parametrize("first", ["# Plain GRPO.", "# Seen: verified.", "# Seen: parsed", ""])
def test_a_first_line_that_is_no_level(first: str, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(f"{first}\nseed_everything: 0\n")
    with pytest.raises(ConfigError, match=r"new\.yaml: the first line says how far .* '# Seen: run to its result\.', .*; got '"):
        described(tmp_path / "new.yaml", "new.yaml")


def test_the_first_sentence_is_the_description(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text("# Seen: parsed.\n# Like paper.yaml, at .6 of\n# its rate: twice. More.\nmodel: {}\n# Not this.\n")
    assert described(path, "new.yaml").about == "Like paper.yaml, at .6 of its rate: twice"
    path.write_text("# Seen: parsed.\n# What it is for:\n#   varrl fit\n")
    assert described(path, "new.yaml").about == "What it is for"
    path.write_text("# Seen: parsed.\nmodel: {}\n")
    assert described(path, "new.yaml").about == ""
