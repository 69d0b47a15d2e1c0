"""A clean configuration, examined once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import examined
from varrl_lightning.commands.doctor_checks import Finding


@pytest.fixture(autouse=True, scope="session")
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # seed_everything leaves them behind
            patch.setenv(name, "0")
        yield


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """All findings of a configuration with a KL, a reward that reads, and a judge."""
    return examined(tmp_path_factory.mktemp("clean"))
