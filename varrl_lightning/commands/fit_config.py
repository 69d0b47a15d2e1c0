"""The configuration of a `fit` command, read for commands that need no Trainer."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from varrl_lightning.commands.cli import VarrlCLI
from varrl_lightning.commands.user_errors import BUILD_ERRORS, reraise_as
from varrl_lightning.data import PromptDataModule
from varrl_lightning.errors import ConfigError
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy


class ParsedConfig(VarrlCLI):
    """A `fit` command line that is only read, for commands that need no Trainer."""

    def instantiate_classes(self) -> None:
        """Nothing yet."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing at all."""

    def get(self, key: str) -> Any:
        """A value of the configuration, by its dotted key."""
        return self.config.fit[key]

    def build_policy(self) -> VARPolicy:
        """The policy alone."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--policy", type=VARPolicy)
        policy: VARPolicy = parser.instantiate(Namespace(policy=self.get("model.policy"))).policy  # type: ignore[no-untyped-call]
        return policy

    def build(self) -> tuple[VARGRPO, PromptDataModule]:
        """The module and its data."""
        with reraise_as(ConfigError, *BUILD_ERRORS):
            built = self.parser.instantiate(self.config).fit
        return built.model, built.data
