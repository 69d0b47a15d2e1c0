"""The commands fit, validate, test and predict: a LightningCLI that reports mistakes before anything is written."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

from varrl_lightning.callbacks import default_callbacks
from varrl_lightning.callbacks.requeue import checkpoint_to_load
from varrl_lightning.callbacks.run_folder import begin_run, check_run_folder
from varrl_lightning.checkpoints.checking import check_checkpoint, load_checkpoint, no_checkpoint
from varrl_lightning.commands.benchmark_report import draw_pairs, report_test
from varrl_lightning.commands.best_of import add_best_of, built_best_of, report_best_of
from varrl_lightning.commands.cycle_costs import cost_table, cycle_costs
from varrl_lightning.commands.early_checks import check_devices, check_model, check_plugins
from varrl_lightning.commands.end_of_run import end_of_run
from varrl_lightning.commands.run_config import RunConfig
from varrl_lightning.commands.user_errors import BUILD_ERRORS, reraise_as, run_command
from varrl_lightning.configuration.explain import explain
from varrl_lightning.configuration.files import forget_former, refuse_keys, refuse_old_names, resolve_configs
from varrl_lightning.configuration.function_help import function_help
from varrl_lightning.configuration.plugin_options import PLUGINS, changed_spec, replacing, split_plugin_options, whole_spec
from varrl_lightning.data import EvaluationBatches, PromptDataModule
from varrl_lightning.errors import ConfigError, StartError
from varrl_lightning.figures.predictions import save_images
from varrl_lightning.loggers import run_loggers
from varrl_lightning.module import VARGRPO
from varrl_lightning.strategies import leave_group, parallel_of
from varrl_lightning.strategies.zero_checkpoints import is_zero_folder
from varrl_lightning.training.cut_prompts import check_cut_prompts
from varrl_lightning.training.reader_guard import require_readers
from varrl_lightning.types import Prompt

OWN_AFFAIR = {"gradient_clip_val": "max_grad_norm", "accumulate_grad_batches": "micro_batch_size"}
SEEDED = {"model.seed": "seed_everything", "data.seed": "seed_everything"}


class VarrlCLI(LightningCLI):
    """LightningCLI for `VARGRPO` and `PromptDataModule`, with one seed for all and one folder per run."""

    def __init__(self, arguments: Sequence[str]) -> None:
        resolved, self.config_files = resolve_configs(arguments)
        resolved, self._plugin_options = split_plugin_options(forget_former(resolved, PLUGINS, replacing))
        super().__init__(
            VARGRPO,
            PromptDataModule,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"log_every_n_steps": 1, "num_sanity_val_steps": 0, "enable_model_summary": False},
            args=resolved,
            auto_configure_optimizers=False,
        )

    # --- parsing ------------------------------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that raises errors instead of printing the usage, and takes no abbreviated options."""
        return super().init_parser(**{"exit_on_error": False, "allow_abbrev": False, **kwargs})

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the one seed of a run."""
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Seed of the rollouts, of the order of prompts, and of all libraries."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the seeds of the module and the datamodule follow the run's."""
        for target, source in SEEDED.items():
            parser.link_arguments(source, target)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument("--prompt", action="append", default=[], help="A prompt to sample; may be repeated.")
            parser.add_argument("--output", default="pictures", help="The folder for the pictures.")
            add_best_of(parser)
        if subcommand == "test":
            parser.add_argument("--output", default="test", help="The folder for test.json, test.md and pictures.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; an error names the closest known name."""
        if (text := function_help(args, lambda: self._subcommand_parsers.get(args[0], parser).get_defaults().keys())) is not None:
            print(text)
            raise SystemExit(0)
        try:
            self.config = parser.parse_args([*args, *self._whole_plugins(parser, args)])
        except argparse.ArgumentError as error:
            refuse_old_names(self.config_files)
            command = self._subcommand_parsers.get(args[0], parser)
            raise ConfigError(explain(str(error), command.get_defaults().keys())) from error
        refuse_keys(self.config_files, SEEDED)

    def _whole_plugins(self, parser: LightningArgumentParser, args: Sequence[str]) -> list[str]:
        """Options that give the whole spec of each plugin of which the command line changes a part."""
        if not self._plugin_options:
            return []
        given = parser.parse_args([a for a in args if not a.startswith("--print_config")])[args[0]]
        specs: dict[str, Any] = {}
        for option in self._plugin_options:
            spec = specs.get(option.plugin, given[option.plugin])
            specs[option.plugin] = changed_spec(spec.as_dict() if isinstance(spec, Namespace) else spec, option)
        return [argument for plugin, spec in specs.items() for argument in whole_spec(plugin, spec)]

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the parent would let a checkpoint's hyper-parameters override the configuration."""

    # --- building -----------------------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Check what needs no weights; choose the run folder for `fit`; switch off writing for all other commands.

        They would overwrite a run.
        """
        with reraise_as(ConfigError, *BUILD_ERRORS):
            check_model(self.config[self.subcommand].model)
        path = self.config[self.subcommand].ckpt_path
        if _is_a_path(path) and not Path(path).exists():
            raise ConfigError(no_checkpoint(path, "there is no such file or folder"))
        config = self.config[self.subcommand].trainer
        for name, instead in OWN_AFFAIR.items():
            if config[name] not in (None, 1 if name == "accumulate_grad_batches" else 0):
                raise ConfigError(f"trainer.{name} is not for a module that optimises by hand; use model.{instead}")
        if self.subcommand != "fit":
            self.save_config_callback = None
            config.logger = config.logger or False
            config.enable_checkpointing = False
        else:
            config.default_root_dir = config.default_root_dir or self._run_folder()
            if not config.fast_dev_run:
                check_run_folder(Path(config.default_root_dir))

    def _run_folder(self) -> str:
        return os.path.join("runs", self.config_files[-1].stem if self.config_files else "varrl")

    def instantiate_classes(self) -> None:
        """Build everything; errors are reported as mistakes in the configuration."""
        config = self.config[self.subcommand]
        with reraise_as(ConfigError, *BUILD_ERRORS):
            check_devices(config.trainer)
            check_plugins(config.model)
            super().instantiate_classes()
        self.datamodule.compare_words = self.model.rewards.reads_words

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add the default callbacks and loggers, unless the configuration has others."""
        config = self.config_init[self.subcommand]
        folder = config.trainer.default_root_dir or self._run_folder()
        config.ckpt_path = checkpoint_to_load(config.ckpt_path, folder, fitting=self.subcommand == "fit")
        if self.subcommand == "fit":
            self.trainer_defaults["callbacks"] = _missing(config.trainer)
            if config.trainer.logger in (None, True):
                # What is there when they begin is this run's own: `before_fit` has kept the rest apart.
                kwargs["logger"] = run_loggers(config.trainer.default_root_dir, resume=True)
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks = _in_order(trainer.callbacks)  # type: ignore[attr-defined]
        return trainer

    # --- running ------------------------------------------------------------------------------------------------------------

    def before_fit(self) -> None:
        """Check that all prompts and the checkpoint fit the model, before anything is written."""
        with reraise_as(StartError, ValueError, OSError):
            self.datamodule.setup("fit")
            self._check_trainer(len(self.datamodule.train_dataloader()))
            self.model.check_prompts(
                [p for prompts in self.datamodule.prompts.values() for p in prompts], self.datamodule.evaluated
            )
            self.model.rewards.check_training_prompts(self.datamodule.prompts["train"])
            if self.trainer.is_global_zero:
                for line in require_readers(self.model.rewards, self.datamodule.prompts["train"], self.model.guards):
                    print(line)
        self._check_checkpoint()
        # Now: if this run is started again before its first save, it must not resume from another's checkpoint.
        begin_run(self.trainer, self.config_init.fit.ckpt_path)
        costs = cycle_costs(self.model.cycle, self.model.policy.schedule(), self.datamodule.batch_size, self.trainer.world_size)
        if self.trainer.is_global_zero:
            Console().print(cost_table(costs))
            if (every := self._never_validates()) is not None:
                print(
                    f"No validation in {self.trainer.max_steps} steps (trainer.val_check_interval {every}), so no best.ckpt either."
                )

    def after_fit(self) -> None:
        """Say what was reached, and which commands come next."""
        if self.trainer.is_global_zero and (text := end_of_run(self.trainer, self.model, self.datamodule)):
            print(f"\n{text}")

    def _check_trainer(self, batches: int) -> None:
        """Refuse what the Trainer would refuse too, but only after the run folder has been written."""
        trainer = self.trainer
        interval = trainer.val_check_interval
        if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
            raise StartError(
                f"trainer.val_check_interval is {interval} steps, but a pass over the training prompts has {batches}. "
                "Lower it, or set trainer.check_val_every_n_epoch to null, so that it counts across passes."
            )

    def _never_validates(self) -> int | None:
        """The interval of validations, where there are prompts for them and training ends before the first."""
        every, last = self.trainer.val_check_interval, self.trainer.max_steps
        asked = self.datamodule.paths["validation"] is not None and self.trainer.limit_val_batches != 0
        return every if asked and isinstance(every, int) and 0 < last < every else None

    def before_validate(self) -> None:
        """Check that the validation prompts fit the model."""
        self._check_prompts("val")
        self._load_folder()

    def before_test(self) -> None:
        """Check that the test prompts fit the model; sample the pairs of pictures once before a checkpoint is loaded."""
        self._check_prompts("test")
        if not self._tested_prompts():
            limit = self.trainer.limit_test_batches
            raise StartError(f"trainer.limit_test_batches is {limit}, so that nothing would be tested; give at least 1 batch")
        self._checkpoint = self.config_init.test.ckpt_path
        self._before = draw_pairs(self.model, self._tested_prompts(), self.trainer) if self._checkpoint else None
        self._load_folder()

    def after_test(self) -> None:
        """Report the results: tables on the console and in files, and the pairs of pictures."""
        config = self.config_init.test
        about = {"checkpoint": self._checkpoint, "prompts": self.datamodule.paths["test"], "seed": self.model.eval_seed}
        after = None if self._before is None else draw_pairs(self.model, self._tested_prompts(), self.trainer)
        if self.trainer.is_global_zero:
            report_test(self.model.evaluator.collected, (self._before, after), Path(config.output), about)

    def predict(self, model: L.LightningModule, datamodule: PromptDataModule, **kwargs: Any) -> None:
        """Sample images of the prompts of the command line, else of those of `data.predict`."""
        config = self.config_init.predict
        with reraise_as(StartError, ValueError, OSError):
            # Numbered, so that a prompt given twice is sampled twice, from different noise.
            prompts = [Prompt(text, id=f"{text} #{i}") for i, text in enumerate(config.prompt)] or self._prompts("predict")
            check_cut_prompts(prompts, self.model.policy, self.model.guards.cut_prompts)
            batches = EvaluationBatches(prompts, datamodule.eval_batch_size)
            for batch in batches:
                cond = self.model.policy.encode_prompts(batch)
                self.model.sampling.check(len(cond.schedule))
        with reraise_as(ConfigError, *BUILD_ERRORS):
            self.model.evaluator.best_of = how = built_best_of(config, self.model, prompts)
        self._check_checkpoint()
        self._load_folder()
        options = kwargs | {"return_predictions": True, "ckpt_path": config.ckpt_path}
        images: Any = self.trainer.predict(model, batches, **options)
        if self.trainer.is_global_zero:
            # `limit_predict_batches` may have left some out.
            sampled = [prompt for batch, _ in zip(batches, images, strict=False) for prompt in batch]
            paths, grid = save_images(images, sampled, Path(config.output))
            print(f"{len(paths)} picture{'s' * (len(paths) > 1)} in {config.output}, enlarged side by side in {grid}")
            if how is not None:
                print(report_best_of(how, self.model.evaluator.candidates, sampled, Path(config.output)))

    def _prompts(self, kind: str) -> list[Prompt]:
        self.datamodule.setup(self.subcommand)
        batches = getattr(self.datamodule, f"{kind}_dataloader")()
        return [prompt for batch in batches for prompt in batch]

    def _tested_prompts(self) -> list[Prompt]:
        """The test prompts that `limit_test_batches` leaves."""
        batches = list(self.datamodule.test_dataloader())
        limit = self.trainer.limit_test_batches
        number = limit if isinstance(limit, int) else int(len(batches) * limit)  # as Lightning counts them
        return [prompt for batch in batches[:number] for prompt in batch]

    def _check_prompts(self, kind: str) -> None:
        with reraise_as(StartError, ValueError, OSError):
            self.model.check_prompts(self._prompts(kind))
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        path = self.config_init[self.subcommand].ckpt_path
        if _is_a_path(path):
            with reraise_as(StartError, ValueError, OSError):
                check_checkpoint(path, self.model, self.model.saved_tensors())

    def _load_folder(self) -> None:
        """Load a checkpoint folder here if the Trainer's strategy cannot; DeepSpeed's engine loads its folders only to train."""
        config = self.config_init[self.subcommand]
        path = Path(config.ckpt_path or "")
        if path.is_dir() and config.ckpt_path and (is_zero_folder(path) or not parallel_of(self.trainer).saves_folders):
            with reraise_as(StartError, ValueError, OSError):
                load_checkpoint(config.ckpt_path, self.model, self.model.saved_tensors())
            config.ckpt_path = None


def _is_a_path(checkpoint: str | None) -> bool:
    """Whether it is a file or folder, and none of the words for which Lightning or this command chooses one."""
    return checkpoint not in (None, "best", "last", "hpc") and not str(checkpoint).startswith("registry")


def _missing(trainer: Namespace) -> list[Callback]:
    """The default callbacks, without those that the configuration has itself or switches off."""
    configured = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    off = tuple(
        kind
        for kind, wanted in ((ProgressBar, trainer.enable_progress_bar), (Checkpoint, trainer.enable_checkpointing))
        if wanted is False or (kind is ProgressBar and any(isinstance(c, ProgressBar) for c in configured))
    )
    return [c for c in default_callbacks() if not isinstance(c, off) and type(c) not in map(type, configured)]


def _in_order(callbacks: Sequence[Callback]) -> list[Callback]:
    """The user's own callbacks, then those of the kinds of the defaults in their order, also where the configuration has them."""
    kinds: list[type[Callback]] = [type(callback) for callback in default_callbacks()]
    return sorted(callbacks, key=lambda c: (isinstance(c, Checkpoint), kinds.index(type(c)) if type(c) in kinds else -1))


def main(arguments: Sequence[str]) -> int:
    """Run one of LightningCLI's commands and return the exit status.

    Args:
        arguments: the command and its arguments.
    """

    def run() -> int:
        VarrlCLI(arguments)
        leave_group()
        return 0

    return run_command(run)
