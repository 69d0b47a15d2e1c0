"""Resolves `--config NAME`: a file, or one of the configurations that come with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from varrl_lightning.configuration.renamed import changed_lines
from varrl_lightning.errors import ConfigError, did_you_mean

_PACKAGE = Path(__file__).parent.parent
_FLAGS = ("--config", "-c")


def configs_folder() -> Path:
    """The folder `configs`: in the installed package, or beside it in a checkout."""
    return next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package, by file name; those of the checkout when run from one."""
    return {path.name: path for path in sorted(configs_folder().glob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file of that name, or else the shipped one of that base name, so that the quick-start runs from any folder.

    Raises:
        ConfigError: when neither exists; lists the shipped ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    for candidate in (path.name, f"{path.name}.yaml"):
        if candidate in shipped:
            return shipped[candidate]
    stems = [Path(known).stem for known in shipped]  # the ending that all share would make any two names alike
    close = did_you_mean(path.stem, stems).replace("'?", ".yaml'?")
    raise ConfigError(
        f"no configuration file {name!r}, neither here nor in the package.{close}\n"
        f"  In the package: {', '.join(shipped) or 'none'}. `varrl list configs` says what each is."
    )


def read_mapping(file: Path, holds: str) -> dict[str, Any]:
    """The mapping that a YAML file is.

    Args:
        holds: what its keys are, for the error: `the keys of a configuration`.

    Raises:
        ConfigError: when it is no YAML, or no mapping.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected {holds}, got {tree!r:.80}")
    return tree


def resolve_configs(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Point every `--config` of a command line to an existing file; also return these files in order."""
    resolved: list[str] = []
    files: list[Path] = []
    pending = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if pending or (equals and flag in _FLAGS):
            files.append(find_config(argument if pending else value))
            resolved.append(str(files[-1]) if pending else f"{flag}={files[-1]}")
            pending = False
        else:
            resolved.append(argument)
            pending = argument in _FLAGS
    return resolved, files


def forget_former(arguments: Sequence[str], keys: Sequence[str], replacing: Callable[[str], str]) -> list[str]:
    """The arguments, with one before each further configuration that gives any of these keys, to forget its former value.

    Args:
        arguments: with the paths of files that exist, as `resolve_configs` gives them.
        keys: dotted.
        replacing: the argument for an option.
    """
    result: list[str] = []
    seen = False
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in _FLAGS and (equals or i + 1 < len(arguments)):
            given = _read(Path(value if equals else arguments[i + 1])) if seen else None
            result += [replacing(f"--{key}") for key in keys if _value(given, key.split(".")) is not None]
            seen = True
        result.append(argument)
    return result


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:  # the parser's own message says where
        return None


def refuse_old_names(files: Sequence[Path]) -> None:
    """Refuse configurations of earlier versions.

    Raises:
        ConfigError: lists every name that has changed, with the one that took its place.
    """
    for path in files:
        try:
            lines = changed_lines(yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError:  # the parser's own message says where
            continue
        if lines:
            raise ConfigError(f"{path} has names of an earlier version. Change in it:\n  " + "\n  ".join(lines))


def refuse_keys(files: Sequence[Path], refused: dict[str, str]) -> None:
    """Refuse keys that would be read and then overwritten.

    Args:
        refused: each dotted key with the key that overwrites it.

    Raises:
        ConfigError: names the file, the key and what to write.
    """
    for path in files:
        for key, instead in refused.items():
            value = _value(yaml.safe_load(path.read_text(encoding="utf-8")), key.split("."))
            if value is not None:
                raise ConfigError(f"{path}: {key} follows {instead}. Remove it and write '{instead}: {value}' at the top level.")


def _value(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
