"""`python -m varrl_lightning.pretraining`."""

from varrl_lightning.pretraining.modules import main

if __name__ == "__main__":
    main()
