"""Reads the configuration of a `fit` command for commands that need no Trainer."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from varrl_lightning.callbacks.requeue import checkpoint_to_load
from varrl_lightning.commands.cli import VarrlCLI
from varrl_lightning.commands.user_errors import BUILD_ERRORS, reraise_as
from varrl_lightning.data import PromptDataModule
from varrl_lightning.errors import ConfigError, StartError
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy


class ParsedConfig(VarrlCLI):
    """A `fit` command line that is only read, for commands that need no Trainer."""

    def instantiate_classes(self) -> None:
        """Do nothing: a command builds what it needs."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing: nothing is trained."""

    def get(self, key: str) -> Any:
        """The value of a dotted key of the configuration."""
        return self.config.fit[key]

    def checkpoint(self) -> str | None:
        """The checkpoint that was given, where `last` and `best` are those of the configuration's run folder.

        Raises:
            StartError: when that run has no such checkpoint; names those that exist.
        """
        with reraise_as(StartError, OSError):
            return checkpoint_to_load(self.get("ckpt_path"), self.get("trainer.default_root_dir"), fitting=False)

    def build_policy(self) -> VARPolicy:
        """Build the policy alone."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--policy", type=VARPolicy)
        policy: VARPolicy = parser.instantiate(Namespace(policy=self.get("model.policy"))).policy  # type: ignore[no-untyped-call]
        return policy

    def build(self) -> tuple[VARGRPO, PromptDataModule]:
        """Build the module and its datamodule."""
        with reraise_as(ConfigError, *BUILD_ERRORS):
            built = self.parser.instantiate(self.config).fit
        built.data.compare_words = built.model.rewards.reads_words
        return built.model, built.data
