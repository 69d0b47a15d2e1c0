"""Trains the embedded model: `python -m varrl_lightning.pretraining fit --config configs/pretrain_words.yaml`."""

from __future__ import annotations

from varrl_lightning.pretraining.modules import PolicyPretraining, Pretraining, TokenizerPretraining, main

__all__ = ["PolicyPretraining", "Pretraining", "TokenizerPretraining", "main"]
