"""What this package uses of the private attributes of others: each is in the installed version, or an upgrade fails here first."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import varrl_lightning

PACKAGE = Path(varrl_lightning.__file__).parent

LIGHTNING = {
    "_accelerator_connector": "lightning.pytorch.trainer.trainer:Trainer",
    "_batches_that_stepped": "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop",
    "_config_initialized": "lightning.pytorch.strategies.deepspeed:DeepSpeedStrategy",
    "_data_fetcher": "lightning.pytorch.loops.fit_loop:_FitLoop",
    "_data_parallel_size": "lightning.pytorch.strategies.model_parallel:ModelParallelStrategy",
    "_init_deepspeed_distributed": "lightning.pytorch.strategies.deepspeed:DeepSpeedStrategy",
    "_optimizer": "lightning.pytorch.core.optimizer:LightningOptimizer",
    "_original_handlers": "lightning.pytorch.trainer.connectors.signal_connector:_SignalConnector",
    "_prepare_subcommand_parser": "lightning.pytorch.cli:LightningCLI",
    "_restricted_classmethod": "lightning.pytorch.utilities.model_helpers",
    "_save_distributed_checkpoint": "lightning.pytorch.strategies.model_parallel:ModelParallelStrategy",
    "_set_hparams": "lightning.pytorch.core.mixins.hparams_mixin:HyperparametersMixin",
    "_should_check_val_fx": "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop",
    "_signal_connector": "lightning.pytorch.trainer.trainer:Trainer",
    "_subcommand_parsers": "lightning.pytorch.cli:LightningCLI",
    "_tensor_parallel_size": "lightning.pytorch.strategies.model_parallel:ModelParallelStrategy",
    "_to_hparams_dict": "lightning.pytorch.core.mixins.hparams_mixin:HyperparametersMixin",
    "_trainer": "lightning.pytorch.core.module:LightningModule",
}
DEEPSPEED = {
    "_config": "deepspeed.runtime.engine:DeepSpeedEngine",
    "_copy_recovery_script": "deepspeed.runtime.engine:DeepSpeedEngine",
    "_epilogue_ran_this_backward": "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3",
    "_get_norm_groups": "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3",
    "_register_deepspeed_module": "deepspeed.runtime.zero.parameter_offload:DeepSpeedZeRoOffload",
}
TORCH = {
    "_apply": "torch.nn:Module",
    "_cdata": "torch:UntypedStorage",
    "_foreach_mul_": "torch",
    "_get_fsdp_state": "torch.distributed.fsdp:FSDPModule",
    "_is_root": "torch.distributed.fsdp._fully_shard._fsdp_state:FSDPState",
    "_local_scalar_dense": "torch.ops:aten",
    "_modules": "torch.nn:Module",
    "_subclasses": "torch",
    "_python_dispatch": "torch.utils",
    "_pytree": "torch.utils",
}
MODELS = {
    "_attn_implementation": "transformers:PretrainedConfig",
    "_disable_adapters": "peft.tuners.tuners_utils:BaseTunerLayer",
}
LISTED = LIGHTNING | DEEPSPEED | TORCH | MODELS
PUBLIC = {"_exit"}
"""In the documentation of Python, in spite of its name."""
WRITTEN_ALONE = {"_data_parallel_size"}
"""Set on `self` in a subclass, and so, to look at, our own."""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _own_names(tree: ast.Module) -> Iterator[str]:
    """Attributes that a file's classes define or set on themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield item.name
                targets = item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
                yield from (target.id for target in targets if isinstance(target, ast.Name))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
OWN = {name for tree in TREES.values() for name in _own_names(tree)} - {"_exit"}


def _used(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """Each private attribute or import in a file: whose it is, its name, its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            yield ast.unparse(node.value), node.attr, node.lineno
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("varrl_lightning"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from ((node.module, name, node.lineno) for name in names if _is_private(name))


def _owner(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def _has(owner: Any, name: str) -> bool:
    """Whether a module or class has an attribute, or a class sets it on its instances."""
    if hasattr(owner, name):
        return True
    classes = owner.__mro__[:-1] if isinstance(owner, type) else ()
    return any(name in vars(c).get("__annotations__", {}) or f"self.{name}" in inspect.getsource(c) for c in classes)


@pytest.mark.parametrize(("name", "owner"), LISTED.items())
def test_it_exists_in_the_installed_version(name: str, owner: str) -> None:
    for needed in ("deepspeed", "peft", "transformers"):
        if owner.startswith(needed):
            pytest.importorskip(needed)
    assert _has(_owner(owner), name)


def test_what_does_not_exist_is_seen() -> None:
    assert not _has(_owner("lightning.pytorch.trainer.trainer:Trainer"), "_accelerator_connection")
    assert not _has(_owner("torch"), "_foreach_mul__")


def test_the_list_is_complete_and_holds_nothing_else() -> None:
    used = {
        name: f"{path.relative_to(PACKAGE)}:{line}"
        for path, tree in TREES.items()
        for whose, name, line in _used(tree)
        if whose == "super()" or name not in OWN
    }
    assert {name: where for name, where in used.items() if name not in LISTED.keys() | PUBLIC} == {}
    assert LISTED.keys() - used.keys() == WRITTEN_ALONE


def test_no_class_reads_what_is_private_to_another_of_ours() -> None:
    read = [
        f"{path.relative_to(PACKAGE)}:{line} {whose}.{name}"
        for path, tree in TREES.items()
        for whose, name, line in _used(tree)
        if name in OWN and whose not in ("self", "cls", "super()")
    ]
    assert read == []
