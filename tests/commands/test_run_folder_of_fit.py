"""What `varrl fit` leaves in its folder whatever the loggers, and how a folder that it cannot use is said."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from varrl_lightning.__main__ import main
from varrl_lightning.policies.base import VARPolicy

NEVER_BUILT = {"class_path": "test_run_folder_of_fit.refuses_to_load"}


def refuses_to_load() -> VARPolicy:
    raise AssertionError("the policy was loaded")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name, word in (("train", "STONE"), ("validation", "RIVER")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f'"{word}"'}) + "\n")
    yield
    # seed_everything leaves its seed in the environment.
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)


def write(policy: dict[str, str] | None = None) -> str:
    model = {"policy": policy or {"class_path": "tiny.tiny_policy"}, "reward": "tiny.LeftBright", "mask_source": "full"}
    config = {
        "model": model | {"m": 2, "group_size": 2, "num_continuations": 2},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "batch_size": 1},
        "trainer": {"accelerator": "cpu", "max_steps": 1, "limit_val_batches": 0, "enable_progress_bar": False},
    }
    Path("t.yaml").write_text(yaml.safe_dump(config))
    return "t.yaml"


def test_another_logger_gets_its_own_and_the_run_folder_is_complete() -> None:
    csv_logger = "--trainer.logger=lightning.pytorch.loggers.CSVLogger"
    assert main(["fit", "--config", write(), csv_logger, "--trainer.logger.save_dir=x"]) == 0
    run, other = Path("runs/t"), next(Path("x").rglob("metrics.csv")).parent
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["group_size"] == 2
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
    assert (run / "figures" / "before_after.png").is_file()
    assert not list(Path("x").rglob("config.yaml"))
    sent = yaml.safe_load((other / "hparams.yaml").read_text())
    assert (sent["group_size"], sent["data"]["batch_size"], sent["seed_everything"]) == (2, 1, 0)
    # A second run, from what the first has saved, with no logger at all.
    assert main(["fit", "--config", str(run / "config.yaml"), "--trainer.logger=false", "--trainer.default_root_dir=runs/t"]) == 0
    for folder in (run, run / "earlier" / "1"):
        assert json.loads((folder / "summary.json").read_text())["steps"] == 1
        assert len((folder / "metrics.csv").read_text().splitlines()) == 2
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert (folder / "config.yaml").is_file()
    assert "CSVLogger" in (run / "earlier" / "1" / "config.yaml").read_text()
    assert "CSVLogger" not in (run / "config.yaml").read_text()


@pytest.mark.parametrize("blocked", ["runs", "runs/t", "runs/t/earlier", "runs/t/config.yaml"])
def test_what_is_in_the_way_of_the_run_folder_is_said_before_anything_is_loaded(
    blocked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, of_kind = Path(blocked), "file" if blocked.endswith(".yaml") else "folder"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if of_kind == "file" else path.touch()
    assert main(["fit", "--config", write(NEVER_BUILT)]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("varrl: the run folder runs/t cannot be used: ")
    assert f"{blocked} is not a {of_kind}" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_full_or_read_only_disk_is_said_too(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, limits = write(NEVER_BUILT), resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = "runs/t" if kind == "full" else "/proc/self/fdinfo/run"
    if kind == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert main(["fit", "--config", config, f"--trainer.default_root_dir={folder}"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"varrl: the run folder {folder} cannot be used: ")
    assert len(said.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_folder_that_is_fine_is_left_as_it_was_when_something_else_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", write(), "--model.group_size=1"]) == 2
    assert "group_size" in capsys.readouterr().err
    assert not Path("runs").exists()
