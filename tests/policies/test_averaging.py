"""The average of trained weights: its arithmetic, its form, and that nothing is ever left swapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from tiny import PROMPTS, tiny_loader, tiny_module, tiny_policy, tiny_trainer
from torch import Tensor, nn

from tests.tiny import saved
from varrl_lightning.__main__ import main
from varrl_lightning.callbacks.rollback import Rollback
from varrl_lightning.checkpoints.checking import check_checkpoint
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.errors import CheckpointError
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.averaging import WeightAverage, check_average
from varrl_lightning.policies.lettering import LetteringPolicy
from varrl_lightning.policies.lora import add_lora, is_adapter

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:You're resuming from a checkpoint that ended"
)

QUICK = ["--model.reward", "tiny.LeftBright", "--model.mask_source", "full", "--model.m", "2"]


def policy_of(*values: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    policy = nn.Module()
    policy.inner = nn.Linear(len(values), 1, bias=False, dtype=dtype)
    set_weights(policy, *values)
    return policy


def set_weights(policy: nn.Module, *values: float) -> None:
    with torch.no_grad():
        policy.get_parameter("inner.weight").copy_(torch.tensor([values]))


def averaged(average: WeightAverage) -> list[float]:
    return average.get_parameter("inner.weight").flatten().tolist()


def test_the_average_is_the_sum_with_falling_weights() -> None:
    policy = policy_of(1.0, 0.0)
    average = WeightAverage(policy, decay=0.25)
    # Steps 0, 1, 2 have d = min(1/4, 1/10), min(1/4, 2/11), min(1/4, 3/12): the last is the decay itself.
    expected = [1.0, 0.0]
    for step, (d, weights) in enumerate([(1 / 10, (2.0, 1.0)), (2 / 11, (4.0, -1.0)), (1 / 4, (8.0, 3.0)), (1 / 4, (0.0, 0.0))]):
        set_weights(policy, *weights)
        average.update(policy, step)
        expected = [d * a + (1 - d) * w for a, w in zip(expected, weights, strict=True)]
        assert averaged(average) == pytest.approx(expected, rel=1e-6)


def test_it_begins_at_the_weights_and_owns_its_memory() -> None:
    policy = policy_of(1.0, 2.0)
    average = WeightAverage(policy, decay=0.9)
    set_weights(policy, 5.0, 5.0)
    assert averaged(average) == [1.0, 2.0]
    assert not any(p.requires_grad for p in average.parameters())


def test_half_precision_weights_have_a_float32_average() -> None:
    policy = policy_of(1.0, dtype=torch.bfloat16)
    average = WeightAverage(policy, decay=0.99)
    set_weights(policy, 1.0078125)  # the next bfloat16 after 1
    average.update(policy, step=10_000)
    assert averaged(average) == pytest.approx([1.000078125], rel=1e-7)  # lost in bfloat16
    assert nn.ModuleList([average]).to(torch.bfloat16)[0].get_parameter("inner.weight").dtype == torch.float32
    assert averaged(average) == pytest.approx([1.000078125], rel=1e-7)


def snapshot(policy: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in policy.parameters()]


def test_within_use_the_policy_has_the_average_and_afterwards_its_own_weights_again() -> None:
    policy = tiny_policy()
    average = WeightAverage(policy, decay=0.5)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn_like(p))
    average.update(policy, step=100)
    own, mean = snapshot(policy), snapshot(average)
    assert not torch.equal(own[0], mean[0])
    with average.used(policy):
        assert all(map(torch.equal, snapshot(policy), mean))
        with average.used(policy):  # as evaluate within export does
            assert all(map(torch.equal, snapshot(policy), mean))
        assert all(map(torch.equal, snapshot(policy), mean))
        assert torch.is_grad_enabled()
    assert all(map(torch.equal, snapshot(policy), own))
    with pytest.raises(KeyboardInterrupt), average.used(policy):
        raise KeyboardInterrupt
    assert all(map(torch.equal, snapshot(policy), own))
    assert all(map(torch.equal, snapshot(average), mean))


class Stop(BaseException):
    """A signal's exception, at any moment."""


class InterruptedAt(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises at the n-th copy."""

    def __init__(self, copies: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies = copies

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.ops.aten.copy_.default:
            self.copies -= 1
            if self.copies == 0:
                raise Stop
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("interrupted_at", [1, 2, 3, 4])
def test_an_interruption_while_weights_are_swapped_is_taken_back_before_anything_is_saved(interrupted_at: int) -> None:
    model = nn.Module()
    model.policy = policy_of(1.0)
    model.policy.other = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.policy.other.weight.fill_(2.0)
    model.average = WeightAverage(model.policy, decay=0.5)
    set_weights(model.policy, 3.0)
    with torch.no_grad():
        model.policy.other.weight.fill_(4.0)
    # Two copies put the average in, two take it out: the last two interrupt the taking back itself.
    with pytest.raises(Stop), InterruptedAt(interrupted_at), model.average.used(model.policy):
        pass
    saved = model.state_dict()
    assert [float(saved[name]) for name in ("policy.inner.weight", "policy.other.weight")] == [3.0, 4.0]
    assert [float(saved[name]) for name in ("average.inner.weight", "average.other.weight")] == [1.0, 2.0]


def test_an_adapter_alone_is_averaged_and_its_average_is_an_adapter_by_name() -> None:
    policy = add_lora(tiny_policy(), rank=2)
    average = WeightAverage(policy, decay=0.9)
    names = [f"average.{name}" for name in average.state_dict()]
    assert [name.removeprefix("average.") for name in names] == [n for n, p in policy.named_parameters() if p.requires_grad]
    assert all(map(is_adapter, names))


def test_other_trained_weights_than_at_the_start_are_refused() -> None:
    policy = tiny_policy()
    average = WeightAverage(policy, decay=0.9)
    next(policy.parameters()).requires_grad_(False)
    with pytest.raises(RuntimeError, match="other weights are trained than when the average was begun: transformer"):
        average.update(policy, step=0)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema_decay must be in \(0, 1\)"):
        WeightAverage(policy_of(1.0), decay)


def test_a_checkpoint_and_a_module_both_have_an_average_or_none() -> None:
    check_average(None, None)
    check_average(0.9, 0.99)
    with pytest.raises(
        ValueError, match=r"holds no average of the weights, the module has one \(ema_decay 0.9\); set ema_decay to null"
    ):
        check_average(None, 0.9)
    with pytest.raises(ValueError, match=r"holds an average of the weights, the module has none .*; set ema_decay as in the run"):
        check_average(0.9, None)


class Weights(Callback):
    """The trained weights after every step."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(snapshot(pl_module.policy))


def small_module(policy: LetteringPolicy | None = None, **options: Any) -> VARGRPO:
    """Of two branches, enough to learn from."""
    return tiny_module(policy, group_size=2, **options)


def fit(module: VARGRPO, steps: int, ckpt_path: Path | None = None, **options: Any) -> VARGRPO:
    tiny_trainer(max_steps=steps, **options).fit(module, tiny_loader(PROMPTS[:1]), ckpt_path=ckpt_path)
    return module


def test_a_run_averages_the_weights_of_its_steps() -> None:
    module, weights = small_module(ema_decay=0.2), Weights()
    begun = snapshot(module.policy)
    fit(module, 4, callbacks=[weights])
    assert module.average is not None
    for i, held in enumerate(module.average.parameters()):
        expected = begun[i].double()
        for d, step in zip((1 / 10, 2 / 11, 1 / 5, 1 / 5), weights.seen, strict=True):
            expected = d * expected + (1 - d) * step[i].double()
        torch.testing.assert_close(held.double(), expected, rtol=1e-6, atol=1e-8)
    assert not torch.equal(snapshot(module.average)[0], snapshot(module.policy)[0])


def test_everything_that_is_looked_at_is_drawn_by_the_average() -> None:
    module = fit(small_module(ema_decay=0.9), 3)
    assert module.average is not None
    other = small_module()
    other.policy.load_state_dict(module.average.state_dict())
    own = snapshot(module.policy)
    assert torch.equal(module(PROMPTS), other(PROMPTS))
    assert torch.equal(module.evaluate(PROMPTS).images, other.evaluate(PROMPTS).images)
    assert module.evaluate(PROMPTS).metrics() == other.evaluate(PROMPTS).metrics()
    for verb in ("validate", "test", "predict"):
        found, wanted = (getattr(tiny_trainer(), verb)(m, tiny_loader()) for m in (module, other))
        assert str(found) == str(wanted), verb
    assert all(map(torch.equal, snapshot(module.policy), own))
    other.policy.load_state_dict(module.policy.state_dict())
    assert not torch.equal(module(PROMPTS), other(PROMPTS))


def test_a_resumed_run_has_the_average_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = fit(small_module(ema_decay=0.9), 5)
    path = saved(fit(small_module(ema_decay=0.9), 3), tmp_path / "a.ckpt")
    resumed = fit(small_module(ema_decay=0.9), 5, path)
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in whole.state_dict().items())
    assert sum(name.startswith("average.") for name in whole.state_dict()) == len(snapshot(whole.policy))
    other = fit(small_module(ema_decay=0.1), 5, path)  # a changed decay is a choice, not a mistake
    same = [torch.equal(x, resumed.state_dict()[name]) for name, x in other.state_dict().items() if name.startswith("average.")]
    assert not all(same)


def test_a_checkpoint_of_an_adapter_holds_its_average_and_no_other(tmp_path: Path) -> None:
    def adapted() -> VARGRPO:
        torch.manual_seed(0)
        policy = tiny_policy()
        add_lora(policy, rank=2)
        return small_module(policy, kl_coef=0.01, ema_decay=0.9)

    whole = fit(adapted(), 5)
    path = saved(fit(adapted(), 3), tmp_path / "a.ckpt")
    held = torch.load(path, weights_only=True)["state_dict"]
    averages = {name.removeprefix("average.") for name in held if name.startswith("average.")}
    assert averages == {name.removeprefix("policy.") for name in held if name.startswith("policy.")}
    assert all("lora_" in name for name in held)
    resumed = fit(adapted(), 5, path)
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in whole.state_dict().items())


@pytest.mark.parametrize(("there", "here"), [(0.9, None), (None, 0.9)])
def test_a_checkpoint_with_an_average_for_a_module_without_is_refused(
    tmp_path: Path, there: float | None, here: float | None
) -> None:
    path = saved(fit(small_module(ema_decay=there), 1), tmp_path / "a.ckpt")
    module = small_module(ema_decay=here)
    with pytest.raises(ValueError, match=f"the checkpoint holds {'an' if there else 'no'} average of the weights"):
        fit(module, 2, path)
    with pytest.raises(CheckpointError, match=f"holds {'an' if there else 'no'} average of the weights.*Set model.ema_decay"):
        check_checkpoint(path, module, module.saved_tensors())


def test_a_run_that_is_rounded_to_half_precision_keeps_a_float32_average() -> None:
    with pytest.warns(UserWarning, match="the trained weights are bfloat16"):
        module = fit(small_module(ema_decay=0.9), 1, precision="bf16-true")
    assert module.average is not None
    assert {p.dtype for p in module.policy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in module.average.parameters()} == {torch.float32}
    module(PROMPTS)


def test_the_average_is_exported_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # as a command does
    (tmp_path / "c.yaml").write_text(
        "model: {policy: {class_path: tiny.tiny_policy}, ema_decay: 0.5}\ndata: {train: builtin:lettering/train.jsonl}\n"
    )
    model, _ = ParsedConfig(["fit", "--config", "c.yaml", *QUICK]).build()
    assert model.average is not None
    with torch.no_grad():
        for x in model.average.parameters():
            x.add_(1)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, "a.ckpt")
    export = ["export", "--config", "c.yaml", *QUICK, "--ckpt_path", "a.ckpt"]
    assert main([*export, "--output", "trained.safetensors"]) == 0
    assert main([*export, "--output", "average.safetensors", "--weights", "average"]) == 0
    trained, average = (load_file(f"{name}.safetensors") for name in ("trained", "average"))
    assert all(torch.equal(average[name], x + 1) for name, x in trained.items())
    assert main([*export, "--output", "other.safetensors", "--weights", "both"]) == 2
    assert "argument --weights: invalid choice: 'both' (choose from 'trained', 'average')" in capsys.readouterr().err
    assert main([*export, "--model.ema_decay", "null", "--output", "other.safetensors", "--weights", "average"]) == 2
    assert "--weights average: this configuration has no average" in capsys.readouterr().err


def test_a_step_that_fails_after_its_first_update_takes_the_average_back_too() -> None:
    module, average_before = small_module(ema_decay=0.5, updates_per_rollout=2), []

    class Fails(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if pl_module.updates_done == 2:
                self.rollback = Rollback(trainer)
                self.rollback.copy_weights(optimizer)
                average_before.extend(snapshot(pl_module.average))
            if pl_module.updates_done == 3:
                raise KeyError("font")

    fails = Fails()
    with pytest.raises(KeyError, match="font"):
        fit(module, 8, callbacks=[fails])
    assert module.average is not None
    assert not all(map(torch.equal, snapshot(module.average), average_before))
    fails.rollback.restore(module.trainer)
    assert all(map(torch.equal, snapshot(module.average), average_before))
