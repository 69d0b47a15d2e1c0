"""The figures of a run, drawn from its folder alone: no Trainer, no torch."""
