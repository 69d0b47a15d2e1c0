"""Narrows a Trainer's module to `VARGRPO`."""

from __future__ import annotations

import lightning as L

from varrl_lightning.module import VARGRPO


def vargrpo(module: L.LightningModule) -> VARGRPO:
    """A Trainer's module as a VARGRPO; Lightning's hooks are typed for any module.

    Raises:
        TypeError: for another module.
    """
    if not isinstance(module, VARGRPO):
        raise TypeError(
            f"the callbacks of varrl_lightning follow a VARGRPO, but this Trainer trains a {type(module).__name__}; leave them out"
        )
    return module
