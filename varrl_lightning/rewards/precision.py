"""The state of torch in which rewards and mask sources compute, whoever calls them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCASTING = ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia", "privateuseone")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it torch computes as in a program that has changed none of its settings, on this device.

    A Trainer sets autocast, the default dtype and inference mode around a step; autocast, inference mode, the default device and
    the current GPU are each thread's own. Without this, the same image would have one number in the caller's thread, another in a
    worker's, and a third in a service.

    Autocast and inference mode are off, the default dtype is float32, tensors are made on the CPU unless something else is said,
    and a GPU is the current one if it is the `device`. Whether gradients are recorded stays as it is.

    The default dtype is the whole process's: where it is another than float32, no other thread may compute meanwhile.
    """
    gradients = torch.is_grad_enabled()
    with ExitStack() as stack:
        for kind in AUTOCASTING:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # which switches gradients on
            stack.enter_context(torch.set_grad_enabled(gradients))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if torch.get_default_dtype() is not torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        yield
