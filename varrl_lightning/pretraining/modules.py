"""Trains the embedded model: `python -m varrl_lightning.pretraining fit --config configs/pretrain_tokenizer.yaml`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.policies.lettering import (
    ASSETS,
    CONTENT,
    HIDDEN,
    LETTERING,
    LetteringPolicy,
    LetteringTransformer,
    lettering_tokenizer,
)
from varrl_lightning.pretraining.pictures import Batch, WordPictures
from varrl_lightning.tokenizers.fitting import fit_codes
from varrl_lightning.weights.loading import load_strictly, read_tensors


class Pretraining(LightningModule):
    """Base of both pre-trainings: AdamW with warm-up and linear decay, and the export.

    Args:
        lr: peak learning rate.
        warmup: steps until the peak.
        weight_decay: of AdamW.
        export: safetensors file to write, in half precision; none when None.
        export_at: step after which it is written; the last one when None. The embedded transformer was exported early.
    """

    trained: nn.Module

    def __init__(self, lr: float, warmup: int, weight_decay: float, export: Path | None, export_at: int | None = None) -> None:
        super().__init__()
        self.lr, self.warmup, self.weight_decay = lr, warmup, weight_decay
        self.export, self.export_at = export, export_at

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW and its schedule: the learning rate falls linearly to 2% of its peak."""
        trained = [p for p in self.trained.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.lr, betas=(0.9, 0.95), weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / self.warmup) * (1 - 0.98 * step / steps)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_end(self, *_: object) -> None:
        """Write the weights after step `export_at`."""
        if self.global_step == self.export_at:
            self.write()

    def on_fit_end(self) -> None:
        """Write the last weights unless `export_at` names a step."""
        if self.export_at is None:
            self.write()

    def write(self) -> None:
        """Write the current weights, if `export` names a file."""
        if self.export is not None and self.trainer.is_global_zero:
            self.export.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.half().contiguous() for k, v in self.trained.state_dict().items()}, self.export)


class TokenizerPretraining(Pretraining):
    """Fit the codes by k-means, then train `refine` on reconstructions cut off at several depths.

    The codes stay as fitted and are written before `refine` is trained, so that the transformer can be trained at the same time.

        loss = sum over depths d of mean |x_d - x| + 4 mean (x_d - x)^2,    x_d = restore(latent_d)

    Args:
        lr: as above.
        warmup: as above.
        weight_decay: as above.
        export: as above.
        depths: numbers of scales whose pictures are compared: up to the scales of content with the plain picture, beyond them with
            the complete one, its details at the tokenizer's strength.
        fit_batches: batches that the codes are fitted to.
        wrong_details: share of the steps in which the details, all scales after those of content, are sampled among the `near`
            nearest codes: sampled details are never perfect, and must not hurt reading.
        near: as above.
        codes: safetensors file of a tokenizer whose codes are kept, since k-means ends elsewhere on another machine and a
            transformer knows its own codes only; `refine` continues from that file's, except for the last layer. Fitted when None.
    """

    def __init__(
        self,
        lr: float = 2e-3,
        warmup: int = 50,
        weight_decay: float = 0.0,
        export: Path | None = None,
        depths: Sequence[int] = (4, 5, 7),
        fit_batches: int = 125,
        wrong_details: float = 0.5,
        near: int = 8,
        codes: Path | None = None,
    ) -> None:
        super().__init__(lr, warmup, weight_decay, export)
        self.depths, self.fit_batches, self.wrong_details, self.near = tuple(depths), fit_batches, wrong_details, near
        self.trained = self.tokenizer = lettering_tokenizer()
        self.codes = codes
        if codes is not None:
            load_strictly(self.tokenizer, read_tensors(codes), source=str(codes))
        self.tokenizer.codes.requires_grad_(False)
        self.tokenizer.patterns.requires_grad_(False)

    def on_fit_start(self) -> None:
        """Fit the codes to pictures of the training words, unless they are given."""
        if self.codes is None:
            pictures = self.trainer.datamodule.training  # type: ignore[attr-defined]
            batches = [pictures[b] for b in range(min(self.fit_batches, len(pictures)))]
            plain, images = (torch.cat([getattr(b, name) for b in batches]).to(self.device) for name in ("plain", "images"))
            fit_codes(self.tokenizer, images, plain, torch.Generator(self.device).manual_seed(pictures.seed))
        for parameter in self.tokenizer.refine[-2].parameters():
            nn.init.zeros_(parameter)
        self.write()

    def reconstructions(
        self, batch: Batch, near: int = 1
    ) -> Iterator[tuple[int, Float[Tensor, "R 3 H W"], Float[Tensor, "R 3 H W"]]]:
        """Yield each of `depths`, the picture after that many scales, and its target."""
        latent, painted = self.tokenizer.begin(len(batch.images)), self.tokenizer.paint(batch.images, batch.plain)
        tokens = self.tokenizer.encode(batch.images, batch.plain, (1,) * CONTENT + (near,) * (len(LETTERING) - CONTENT))
        for t, tokens_t in enumerate(tokens):
            latent = self.tokenizer.accumulate(latent, tokens_t, t)
            if t + 1 in self.depths:
                yield t + 1, self.tokenizer.restore(latent), batch.plain if t < CONTENT else painted

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the reconstruction loss, summed over depths."""
        near = self.near if random.Random(batch_idx).random() < self.wrong_details else 1
        losses = []
        for depth, picture, wanted in self.reconstructions(batch, near):
            difference = picture - wanted
            losses.append(difference.abs().mean() + 4 * difference.pow(2).mean())
            self.log(f"train/loss_{depth}", losses[-1], batch_size=len(wanted))
        return torch.stack(losses).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the root mean squared error of each depth, on a scale of 0 to 1."""
        for depth, picture, wanted in self.reconstructions(batch):
            self.log(f"validation/rmse_{depth}", (picture - wanted).pow(2).mean().sqrt(), batch_size=len(wanted))


class PolicyPretraining(Pretraining):
    """Train the transformer by teacher forcing: the cross-entropy of each scale's tokens, weighted by scale.

    Args:
        lr: as above.
        warmup: as above.
        weight_decay: as above.
        export: as above.
        export_at: as above.
        tokenizer: safetensors file of the tokenizer.
        start: safetensors file of the initial weights; random ones when None.
        drop: probability of hiding the complete prompt, which trains the unconditional half of guidance.
        hide_words: hide the letters of every prompt, so that all but spelling is learned.
        stops: numbers of scales that steps run, in turn; the scales of content cost an eighth of all.
        weights: of the scales' mean cross-entropies in the loss.
    """

    def __init__(
        self,
        lr: float = 2e-3,
        warmup: int = 100,
        weight_decay: float = 0.05,
        export: Path | None = None,
        export_at: int | None = None,
        tokenizer: Path = ASSETS / "tokenizer.safetensors",
        start: Path | None = None,
        drop: float = 0.1,
        hide_words: bool = False,
        stops: Sequence[int] = (7,),
        weights: Sequence[float] = (0.1, 0.2, 1.0, 1.5, 1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(lr, warmup, weight_decay, export, export_at)
        self.drop, self.hide_words, self.stops, self.weights = drop, hide_words, tuple(stops), tuple(weights)
        vq = lettering_tokenizer()
        load_strictly(vq, read_tensors(tokenizer), source=str(tokenizer))
        self.policy = LetteringPolicy(LetteringTransformer(vq.vocab_size, vq.channels), vq)
        self.trained = self.policy.transformer
        if start is not None:
            load_strictly(self.trained, read_tensors(start), source=str(start))

    def cross_entropies(self, batch: Batch, stop: int, drop: float) -> list[Tensor]:
        """Mean cross-entropy of each scale before `stop`, in nats a token."""
        hidden = (torch.rand(len(batch.letters), device=self.device) < drop)[:, None]
        letters = batch.letters.masked_fill(torch.ones_like(hidden) if self.hide_words else hidden, HIDDEN)
        inputs = {"letters": letters, "styles": batch.styles.masked_fill(hidden, 0)}
        tokens = self.policy.tokenizer.encode(batch.images, batch.plain)
        features = self.policy.span_features(inputs, tokens, 0, stop, LETTERING)
        return [F.cross_entropy(self.policy.logits(f).flatten(0, 1), t.flatten()) for f, t in zip(features, tokens)]  # noqa: B905

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the weighted cross-entropy."""
        stop = self.stops[batch_idx % len(self.stops)]
        losses = self.cross_entropies(batch, stop, self.drop)
        self.log_dict({f"train/cross_entropy_{t + 1}": loss for t, loss in enumerate(losses)}, batch_size=len(batch.letters))
        return torch.stack([w * loss for w, loss in zip(self.weights, losses)]).sum()  # noqa: B905

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the cross-entropy of each scale on words that were never trained on."""
        for t, loss in enumerate(self.cross_entropies(batch, len(LETTERING), 0.0)):
            self.log(f"validation/cross_entropy_{t + 1}", loss, batch_size=len(batch.letters))


def main() -> None:
    """Run the command line: `fit` and `validate` of the two pre-trainings."""
    LightningCLI(
        Pretraining,
        WordPictures,
        trainer_class=Trainer,
        subclass_mode_model=True,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={"prog": "python -m varrl_lightning.pretraining"},
    )
