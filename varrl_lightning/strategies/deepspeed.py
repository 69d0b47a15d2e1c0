"""DeepSpeed ZeRO: optimizer state (1), gradients too (2), weights too (3) are sharded over all processes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies.ddp import DDPStrategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.strategies.base import Parallel
from varrl_lightning.strategies.zero_checkpoints import check_installed, count_writers

_NOISE = (
    # DeepSpeed 0.19 with torch 2.13.
    r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
    # Each process writes its shards: that is the point.
    r"When saving the DeepSpeed Stage 3 checkpoint",
)


class ZeROStrategy(DeepSpeedStrategy):
    """Lightning's strategy for DeepSpeed, on CPUs too, and with errors for checkpoints that cannot be loaded.

    Args:
        stage: what is sharded: 1 optimizer state, 2 gradients too, 3 weights too.
        persistence: with stage 3, weights of at most so many entries are whole on every process.
        config: a DeepSpeed configuration, or the path of one, in place of all the above; without `gradient_clipping`, which is the
            module's max_grad_norm, and without `offload_optimizer`.

    Raises:
        ModuleNotFoundError: without DeepSpeed; names the command that installs it.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        persistence: int = 100_000,
        config: dict[str, Any] | str | Path | None = None,
    ) -> None:
        check_installed()
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        super().__init__(
            stage=stage,
            config=config,
            logging_batch_size_per_gpu=1,
            logging_level=logging.ERROR,
        )
        assert isinstance(self.config, dict)
        if config is None:
            self.config["zero_optimization"]["stage3_param_persistence_threshold"] = persistence

    @property
    def root_device(self) -> torch.device:
        """The device of this process; a CPU has a number here, since DeepSpeed asks for one."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Begin the process group."""
        # Beyond this Lightning's own refuses everything but CUDA.
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Begin the process group; see `setup_environment`."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        import deepspeed

        # Its own kernels for collectives on a CPU would be compiled now, and gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a folder, each process its part; of a policy with an adapter the adapter alone."""
        self.exclude_frozen_parameters = self.has_adapter()
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a folder; one that another number of processes has written must have been converted.

        Raises:
            ValueError: when it has not; names the command.
        """
        folder = Path(checkpoint_path)
        writers = count_writers(folder)  # none: Lightning says what is wrong with it
        changed = writers not in (0, self.world_size)
        if changed and not (folder / "latest_universal").is_file():
            raise ValueError(
                f"the checkpoint {folder} was written by {writers} processes and there are {self.world_size} now. Convert it "
                f"once, then resume again: python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state "
                f"--input_folder {folder / 'checkpoint'} --output_folder {folder / 'universal'}"
            )
        module, config = self.lightning_module, self.deepspeed_engine._config
        assert module is not None
        strict = module.strict_loading
        module.strict_loading = strict and not self.has_adapter()
        config.load_universal_checkpoint = changed
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            config.load_universal_checkpoint = False
            module.strict_loading = strict

    def has_adapter(self) -> bool:
        """Whether the trained policy has an adapter."""
        assert self.lightning_module is not None
        return any(is_adapter(name) for name, _ in self.lightning_module.named_parameters())


class EngineParallel(Parallel):
    """DeepSpeed's engine averages gradients, clips them, and steps; under ZeRO-3 it gathers a module's weights when it runs.

    Args:
        strategy: the Trainer's, Lightning's own or `ZeROStrategy`.
    """

    strategy: DeepSpeedStrategy
    saves_folders = True
    fp32_masters = True
    _reference: VARPolicy | None = None

    @property
    def kind(self) -> str:
        """The kind of strategy, by its stage: `zero1`, `zero2` or `zero3`."""
        config = self.strategy.config if isinstance(self.strategy.config, dict) else {}
        return f"zero{max(int(config.get('zero_optimization', {}).get('stage', 0)), 1)}"

    @property
    def whole_everywhere(self) -> bool:  # type: ignore[override]
        """Whether each process can sample when the others do not: not with stage 3."""
        return not self.strategy.zero_stage_3

    @property
    def _zero(self) -> Any:
        """The engine's optimizer, which holds the gradients."""
        return self.strategy.deepspeed_engine.optimizer

    # --- the weights --------------------------------------------------------------------------------------------------------

    def place_reference(self, reference: VARPolicy, policy: VARPolicy) -> None:
        """Shard the reference by FSDP2 where the policy is sharded: two engines of ZeRO-3 share too much."""
        if not self.strategy.zero_stage_3:
            super().place_reference(reference, policy)
            return
        from varrl_lightning.strategies.fsdp2 import shard

        mesh = init_device_mesh(self.strategy.root_device.type, (self.world_size,))
        reference.to(dtype=next(policy.transformer.parameters()).dtype)
        shard(reference, mesh, ("begin", "sample", "span_halves", "on_support"))
        reference.to(policy.device)
        self._reference = reference

    @contextmanager
    def sampling(self, policies: Sequence[VARPolicy]) -> Iterator[None]:
        """Within it the first of these policies, which is the one that samples, is whole on every process."""
        if not self.strategy.zero_stage_3:
            yield
            return
        import deepspeed

        # Without an optimizer the engine has what gathers in its place.
        gatherer = getattr(self._zero, "parameter_offload", self._zero)
        with deepspeed.zero.GatheredParameters([p for policy in policies[:1] for p in policy.parameters()]):
            # Its hooks would release the weights of each module that has run.
            for hook in (*gatherer.forward_hooks, *gatherer.backward_hooks):
                hook.remove()
            gatherer.forward_hooks, gatherer.backward_hooks = [], []
            try:
                yield
            finally:
                gatherer._register_deepspeed_module(gatherer.module)

    # --- the update ---------------------------------------------------------------------------------------------------------

    def check_optimization(self, max_grad_norm: float | None) -> None:
        """Set the engine to clip in its step.

        Raises:
            ValueError: when DeepSpeed's configuration clips otherwise, or keeps optimizer state in the host's memory.
        """
        config, wanted = self.strategy.config, max_grad_norm or 0.0
        assert isinstance(config, dict)
        if (config.get("zero_optimization", {}).get("offload_optimizer") or {}).get("device", "none") != "none":
            raise ValueError(
                "DeepSpeed's offload_optimizer steps again with the last gradient of weights that a stage does not reach; train "
                "without it, on more processes, or with add_lora, whose optimizer state is small"
            )
        if not self.strategy._config_initialized and config.get("gradient_clipping", wanted) != wanted:
            raise ValueError(
                f"DeepSpeed's gradient_clipping is {config['gradient_clipping']}, but max_grad_norm of the model is {max_grad_norm}"
                "; leave gradient_clipping out, and set max_grad_norm"
            )
        if config.get("bf16", {}).get("check_grad_overflow") is False:
            raise ValueError(
                "DeepSpeed's bf16.check_grad_overflow is false: a gradient that is not finite would reach the weights; leave it out"
            )
        config["gradient_clipping"] = wanted

    def check_average(self) -> None:
        """Refuse an average where the engine keeps weights in a form of its own.

        Raises:
            ValueError: under ZeRO-3, and with an adapter.
        """
        if self.strategy.zero_stage_3:
            raise ValueError(
                "ema_decay keeps an average of the weights, which ZeRO-3 splits in a way of its own; use strategy fsdp2, which "
                "shards as much, or ZeRO-2, or set ema_decay to null"
            )
        if self.strategy.has_adapter() if isinstance(self.strategy, ZeROStrategy) else self.strategy.exclude_frozen_parameters:
            raise ValueError(
                "ema_decay keeps an average of an adapter, which DeepSpeed leaves out of its checkpoints, since the average itself "
                "does not train; use strategy ddp or fsdp2, or set ema_decay to null"
            )

    def backward(self, module: L.LightningModule, loss: Float[Tensor, ""], last: bool) -> None:
        """Run the backward of one micro-batch; see `Parallel.backward`.

        Each stage keeps what it keeps after a backward, so that with stages 2 and 3 no process ever holds the whole gradient.
        """
        engine, zero = self.strategy.deepspeed_engine, self._zero
        # The engine would count forward calls to know which backward is the last; here all of a step lie within one of them.
        engine.set_gradient_accumulation_boundary(last)
        if self.strategy.zero_stage_3:
            if zero.micro_step_id == 0 and not zero._epilogue_ran_this_backward:
                # The first of a step: what the loss does not reach has its gradient of the step before in it.
                zero.grad_partitions_flat_buffer.zero_()
            # What a policy reads without calling a module must be there in its backward too. The engine's own hook for that hangs
            # on the tensors that a module returns, and sees none in LogProbs; its end of a backward releases what this gathers.
            for policy in (part for part in module.modules() if isinstance(part, VARPolicy)):
                zero.parameter_offload.pre_sub_module_backward_function(policy)
        zero.clear_backward_seen_flag()
        module.manual_backward(loss * self.world_size)
        if last and self._reference is not None:
            from varrl_lightning.strategies.fsdp2 import release

            release(self._reference)

    def gradient_norm(self, optimizer: Optimizer) -> Float[Tensor, ""]:
        """L2 norm of the whole gradient, the same on all processes; inf where it is not finite."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        zero = self._zero
        norm = combine_grad_norm_groups(zero._get_norm_groups()) if self.strategy.zero_stage_3 else zero.scaled_global_norm()
        # DeepSpeed says -1 of what is not finite.
        return torch.where(norm < 0, torch.inf, norm / zero.loss_scale)

    def clip(self, optimizer: Optimizer, max_norm: float, norm: Float[Tensor, ""]) -> None:
        """Do nothing: the engine clips in its step; see `check_optimization`."""

    def drop(self, optimizer: Optimizer) -> None:
        """Fill the gradient with inf: the engine skips a step whose gradient is not finite."""
        for parts in self._zero.averaged_gradients.values():
            for part in parts or ():
                part.fill_(torch.inf)
