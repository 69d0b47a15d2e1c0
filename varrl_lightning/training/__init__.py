"""Everything that `VARGRPO` needs to train under a Lightning Trainer."""
