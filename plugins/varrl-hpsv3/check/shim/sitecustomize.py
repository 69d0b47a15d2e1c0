"""Lets a CUDA build of torchvision be imported beside a CPU build of torch, where operators that it describes are missing."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torchvision"):
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        # Never called, since nothing here detects boxes.
        _library = torch.library.Library("torchvision", "DEF")
        for _operator in ("nms", "qnms"):
            _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
