"""What stands on the page of a run. One run of four updates for all tests, and pages of folders written by hand: ten seconds."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.run_page.made import EVIL, Parsed, sampled, trained, write_config, written
from varrl_lightning.run_page.page import page
from varrl_lightning.run_page.record import read_runs

vl_convert = pytest.importorskip("vl_convert", reason="needs the extra 'report'")
SECTIONS = [
    *("results", "before-and-after", "training", "validation", "stages", "scales", "conflict-between-scales", "reward-hacking"),
    *("cost", "samples", "configuration", "environment", "verification-level"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def whole(run: Path) -> str:
    return page(read_runs([run]))


@pytest.fixture(scope="module")
def parsed(whole: str) -> Parsed:
    return Parsed(whole)


def test_a_run_with_all_callbacks_has_every_section_and_no_problem(parsed: Parsed) -> None:
    assert [attributes["id"] for attributes in parsed.all("section")] == SECTIONS
    assert [attributes["href"] for attributes in parsed.all("a")] == ["#main", *(f"#{name}" for name in SECTIONS)]
    assert "Not measured" not in parsed.text
    assert "What this page does not have" not in parsed.text
    for part in (
        "prefix: reward",
        "suffix: reward",
        "scale 4",
        "Cosines at step",
        "diversity",
        "Learning rate",
    ):
        assert part in parsed.text, part


def test_every_plot_has_a_place_and_is_one_that_vega_lite_compiles(parsed: Parsed) -> None:
    places = [attributes for _, attributes in parsed.elements if "data-spec" in attributes]
    assert [place["data-spec"] for place in places] == [str(i) for i in range(len(parsed.specs))]
    assert len(places) > 30
    assert all(place["role"] == "img" and str(place["aria-label"]).startswith("Plot of ") for place in places)
    kinds = {str(sorted(spec)): spec for spec in parsed.specs}
    assert len(kinds) == 2  # lines and intervals are layers, maps have one encoding for all layers
    for spec in kinds.values():
        vega = vl_convert.vegalite_to_vega(spec)
        assert vega["marks"]


def test_the_before_and_after_pictures_say_what_they_show(parsed: Parsed) -> None:
    pairs = [image for image in parsed.all("img") if str(image["alt"]).startswith(("before", "after"))]
    assert len(pairs) == 8
    assert all(str(image["src"]).startswith("data:image/") for image in pairs)
    assert pairs[0]["alt"] in (
        'before training, of the prompt "LIGHT": read LIGHT ✓',
        'before training, of the prompt "LIGHT": read XYZ ✗',
    )


def test_the_table_has_the_rows_of_the_run_s_tables(parsed: Parsed) -> None:
    rows = [attributes for attributes in parsed.all("tr") if "data-text" in attributes]
    assert {row["data-stage"] for row in rows} == {"prefix", "suffix"}
    assert len(rows) == 8
    assert "8 of 8 images that training has seen" in parsed.text
    masks = [image for image in parsed.all("img") if str(image["alt"]).startswith("mask of scale")]
    assert len(masks) == 2 * 2 * 2 * 2  # of two scales a stage


def test_the_environment_names_device_commit_and_versions(parsed: Parsed) -> None:
    for name in ("device", "processes", "precision", "commit", "torch", "lightning"):
        assert name in parsed.text.partition("Where the runs were made")[2]


def test_the_verification_level_is_that_of_the_nearest_configuration(parsed: Parsed) -> None:
    assert "quickstart.yaml, is at the level “run to its result”" in parsed.text
    assert "nothing certain" not in parsed.text


def test_nothing_is_asked_for_elsewhere(whole: str, parsed: Parsed) -> None:
    for name in ("src", "href", "srcset", "data", "action", "poster"):
        found = [str(attributes[name]) for _, attributes in parsed.elements if name in attributes]
        assert all(address.startswith(("data:", "#")) for address in found), name
    assert "@import" not in whole
    assert "url(" not in whole.partition("</style>")[0]
    (policy,) = [meta for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in str(policy["content"])


def test_headings_are_in_order_and_tables_have_captions(parsed: Parsed) -> None:
    levels = [int(tag[1]) for tag, _ in parsed.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    assert parsed.all("html") == [{"lang": "en"}]
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in parsed.elements}


def test_without_callbacks_a_line_says_what_to_add(tmp_path: Path) -> None:
    found = Parsed(page(read_runs([written(tmp_path / "bare", {"reward": [0.1, 0.3]})])))
    assert "add varrl_lightning.callbacks.ScaleConflict to trainer.callbacks" in found.text
    assert "add varrl_lightning.callbacks.RewardHacking to trainer.callbacks" in found.text
    assert "there are 2 updates so far" in found.text
    assert "No config.yaml" in found.text
    assert len(found.specs) == 1


def test_text_of_prompts_is_text_everywhere(tmp_path: Path) -> None:
    run = sampled(written(tmp_path / "<b>run", {"reward": [0.1, 0.3], "rewards/</script><i>": [1.0, 2.0]}))
    write_config(run, 0, train="</script><b>here")
    found = Parsed(page(read_runs([run])))
    assert [tag for tag, _ in found.elements if tag in ("b", "i")] == []
    assert all("onerror" not in attributes for _, attributes in found.elements)
    assert len(found.all("script")) == 3
    assert found.text.count(EVIL) == 2 + 4  # captions of two pairs, four rows
    assert any(EVIL in str(image["alt"]) for image in found.all("img"))
    assert found.specs


def test_characters_that_html_may_not_hold_are_replaced(tmp_path: Path) -> None:
    run = sampled(written(tmp_path / "run", {"reward": [0.1]}), text='a\x00b\x1b "STONE"')
    whole = page(read_runs([run]))
    assert "\x00" not in whole
    assert "\x1b" not in whole
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}" in whole


def test_two_runs_have_a_band_and_the_differences_of_their_configurations(tmp_path: Path) -> None:
    runs = [written(tmp_path / f"seed{i}", {"reward": [0.1 + i, 0.3]}, seed=i) for i in range(2)]
    found = Parsed(page(read_runs(runs)))
    assert "a band from the lowest to the highest run (seed0, seed1)" in found.text
    differences = found.text.partition("Keys that differ between the runs")[2].partition("config.yaml of")[0]
    assert differences.split()[:6] == ["key", "seed0", "seed1", "seed_everything", "0", "1"] or "seed_everything01" in differences
    other = written(tmp_path / "other", {"reward": [0.2, 0.4]})
    write_config(other, 0, group_size="16")
    found = Parsed(page(read_runs([*runs, other])))
    assert "model.group_size" in found.text
    assert "seed0 and 1 more" in found.text


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    values = [i % 7 / 7 for i in range(20_000)]
    columns = dict.fromkeys(("reward", "loss", "kl", "entropy", "entropy/scale_1", "entropy/scale_2", "grad_norm"), values)
    run = sampled(written(tmp_path / "long", columns), steps=range(0, 2000, 40), count=32)
    whole = page(read_runs([run]))
    assert len(whole) < 3e6
    assert "of 1600 images" in whole
