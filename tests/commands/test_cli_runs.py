"""The command line: what its runs leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.commands.tiny_config import WriteConfig, named
from varrl_lightning.__main__ import main
from varrl_lightning.commands.cli import VarrlCLI
from varrl_lightning.commands.user_errors import silence_lightning
from varrl_lightning.types import Prompt


def test_print_config_is_accepted_again(
    write: WriteConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = named("torch.optim.AdamW", lr=0.001)
    scheduler = named("torch.optim.lr_scheduler.LinearLR", total_iters=7)
    config = write({"model.optimizer": optimizer, "model.lr_scheduler": scheduler, "model.score": "sampler"})
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", config, "--model.sampling.top_k=3", "--print_config"])
    printed = capsys.readouterr().out
    Path("again.yaml").write_text(printed)
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", "again.yaml", "--print_config"])
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(VarrlCLI, "_run_subcommand", lambda self, name: None)
    model = VarrlCLI(["fit", "--config", "again.yaml"]).model
    assert (model.sampling.top_k, model.grpo.objective.score.kind, model.seed) == (3, "sampler", 0)
    (built,), (schedule,) = model.configure_optimizers()
    assert (built.defaults["lr"], schedule.total_iters) == (0.001, 7)


def test_one_seed_is_everybodys(write: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VarrlCLI, "_run_subcommand", lambda self, name: None)
    cli = VarrlCLI(["fit", "--config", write(), "--seed_everything=5"])
    assert (cli.model.seed, cli.datamodule.order_seed) == (5, 5)


def test_fit_leaves_a_run_that_the_other_commands_leave_alone(write: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = write()
    assert main(["fit", "--config", config]) == 0
    assert "2 x 2 x 2 = 8" in capsys.readouterr().out
    run = Path("runs/t")
    for name in ("config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt", "samples", "tensorboard"):
        assert (run / name).exists()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command in ("validate", "test"):
        assert main([command, "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt")]) == 0
        assert "reward" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not Path("lightning_logs").exists()

    again = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt")]
    assert main([*again, "--trainer.max_steps=3"]) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 3


class Failing:
    """A reward that works for the first rollout."""

    calls = 0

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        Failing.calls += 1
        if len(images) == 8 and Failing.calls > 4:
            raise RuntimeError("no connection")
        return images.mean(dim=(1, 2, 3))


def test_a_reward_that_fails_in_training_ends_with_a_message_and_a_checkpoint(
    write: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write({"model.reward": "test_cli_runs.Failing", "trainer.max_steps": 20})]) == 1
    error = capsys.readouterr().err
    line = Failing.__call__.__code__.co_firstlineno + 3
    where = f'(File "{__file__}", line {line}, in __call__)'
    assert f"varrl: the reward 'Failing' raised RuntimeError: no connection {where}\n" in error
    assert "Traceback" not in error
    assert Path("runs/t/checkpoints/last.ckpt").is_file()


def test_predict_draws_the_prompts_of_the_command_line(write: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ["--prompt", '"HELLO"', "--prompt", '"HELLO"', "--data.eval_batch_size=1", "--output", "out/words"]
    assert main(["predict", "--config", write(), *twice]) == 0
    assert "2 pictures in out/words" in capsys.readouterr().out
    assert not Path("out/words/best_of.json").exists()
    first, second = Path("out/words/0001_HELLO.png"), Path("out/words/0002_HELLO.png")
    with Image.open(first) as picture:
        assert picture.size == (16, 16)
    assert first.read_bytes() != second.read_bytes()
    assert Path("out/words/grid.png").is_file()


def test_predict_draws_the_prompts_of_a_file(write: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    best = ["--best_of", "2", "--best_by", "sharpness", "--prune_at", "2"]
    assert main(["predict", "--config", write(), "--data.predict", "few.jsonl", *best, "--output", "best"]) == 0
    assert "Best of 2 by sharpness of drafts of 2 scales: " in capsys.readouterr().out
    assert len(json.loads(Path("best/best_of.json").read_text())["prompts"]) == 2
    assert main(["predict", "--config", write(), "--data.predict", "few.jsonl"]) == 0
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["0001_PLANT.png", "0002_HORSE.png", "grid.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "set data.predict to a JSONL file, or give --prompt 'TEXT'"),
        (["--prompt", "HELLO"], "got no word in quotes from text 'HELLO'; expected, for example, 'a red wooden sign"),
        (["--prompt", '"ELEPHANT"'], "one to three words of 3-5 letters A-Z, got words ['ELEPHANT'] from text"),
        (["--prompt", ""], "one to three words"),
    ],
)
def test_predict_says_what_it_cannot_draw(
    write: WriteConfig, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["predict", "--config", write(), *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not Path("pictures").exists()


def test_the_traceback_is_shown_only_when_debugging_is_on(write: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARRL_DEBUG", "0")
    assert main(["fit", "--config", write({"model.alpha": "high"})]) == 2


def test_a_test_of_some_batches_reports_the_images_that_it_scored(write: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = write({"data.eval_batch_size": 1})
    assert main(["test", "--config", config, "--trainer.limit_test_batches", "1"]) == 0
    report = json.loads(Path("test/test.json").read_text())
    assert report["about"]["images"] == 1
    assert "Measured, 1 images" in capsys.readouterr().out
    assert main(["test", "--config", config, "--trainer.limit_test_batches", "0"]) == 1
    assert "limit_test_batches is 0, so that nothing would be tested" in capsys.readouterr().err


def test_predict_writes_the_pictures_that_it_sampled(write: WriteConfig) -> None:
    config = write({"data.eval_batch_size": 1})
    assert main(["predict", "--config", config, "--data.predict", "few.jsonl", "--trainer.limit_predict_batches", "1"]) == 0
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["0001_PLANT.png", "grid.png"]


def test_a_summary_of_ones_own_keeps_its_place_among_the_callbacks(write: WriteConfig) -> None:
    options = ["--trainer.callbacks+=Summary", "--trainer.callbacks.max_prompts=0", "--trainer.max_steps=1"]
    silence_lightning()
    cli = VarrlCLI(["fit", "--config", write(), *options])
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert names.index("SafeStop") < names.index("Summary") < names.index("Checkpoints")
    assert json.loads((Path(cli.trainer.default_root_dir) / "summary.json").read_text())["eval_samples"] == 0
