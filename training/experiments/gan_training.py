"""Trains one GAN as a `GanTrial` describes it, and measures its images after each epoch.

The losses are those of Goodfellow et al. 2014, the generator's in the form that does not saturate;
the optimizer is that of Radford et al. 2016. Two equal trials on one machine give the same result.
"""

import io

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from model.bundle.architecture_description import ActivationName, Architecture
from training.data.batches import Batches, to_channels_last
from training.data.dataset import Dataset
from training.experiments.gan_networks import build_discriminator, build_generator, draw_latents
from training.experiments.generated_image_quality import ImageJudge, ImageQuality
from training.fitting.unit_diagnostics import diagnose
from training.network.classifier import Classifier

_LEARNING_RATE = 2e-4
_BETAS = (0.5, 0.999)
_PICTURES = 8
"""Images of each epoch that are kept to be looked at."""
_GENERATED_BATCH = 500


class GanTrial(BaseModel):
    """All that determines one GAN; what it is measured with is the judge's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    activation: ActivationName
    """Of the discriminator; the generator has ReLU."""
    negative_slope: float = 0.01
    channels: int
    batch_size: int = 64
    epochs: int
    judged_images: int
    """Generated images, and as many test images, that are compared."""
    seed: int = 0


class GanCheck(BaseModel):
    """The measurements after one epoch."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    quality: ImageQuality
    generator_gradient: float
    """L2 norm of the gradient of a generated image's loss at its pixels; mean over the epoch."""
    dead: int
    """Units of the discriminator that fire on no judged image, real or generated."""
    pictures: bytes
    """PNG, a row of generated images whose latent vectors are the same in every epoch."""


class GanResult(BaseModel):
    """The measurements of one GAN, and the number of its discriminator's hidden units."""

    model_config = ConfigDict(frozen=True)

    checks: tuple[GanCheck, ...]
    units: int

    @property
    def last(self) -> GanCheck:
        """The check after the last epoch."""
        return self.checks[-1]


class Gan:
    """A generator and a discriminator with their optimizers."""

    def __init__(self, generator: nn.Module, discriminator: Classifier) -> None:
        self.generator, self.discriminator = generator, discriminator
        self._optimizers = [
            torch.optim.Adam(network.parameters(), _LEARNING_RATE, _BETAS)
            for network in (generator, discriminator)
        ]

    def step(self, real: Tensor) -> float:
        """Train both networks on real images [N, C, H, W] in 0..1 and as many generated ones.

        Returns: the mean over the generated images of the L2 norm of the loss's gradient there.
        """
        for_generator, for_discriminator = self._optimizers
        generated = self.generator(draw_latents(len(real)))
        for_discriminator.zero_grad()
        loss = self._loss(real, is_real=True) + self._loss(generated.detach(), is_real=False)
        loss.backward()  # type: ignore[no-untyped-call]
        for_discriminator.step()
        for_generator.zero_grad()
        generated.retain_grad()
        self.discriminator.requires_grad_(False)  # its own gradients are not wanted here
        self._loss(generated, is_real=True).backward()  # type: ignore[no-untyped-call]
        self.discriminator.requires_grad_(True)
        for_generator.step()
        # The loss is a mean over the batch, so the gradient of one image is divided by its size.
        return float(generated.grad.flatten(1).norm(dim=1).sum())

    @torch.no_grad()
    def generate(self, latents: Tensor) -> Tensor:
        """Return images float32 [N, C, H, W] in 0..1 of latent vectors, in evaluation mode."""
        self.generator.eval()
        images = torch.cat(
            [self.generator(batch) for batch in torch.split(latents, _GENERATED_BATCH)]
        )
        self.generator.train()
        return images

    def _loss(self, images: Tensor, *, is_real: bool) -> Tensor:
        logits = self.discriminator(images)
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))


def run_gan_trial(trial: GanTrial, data: Dataset, judge: ImageJudge) -> GanResult:
    """Train as `trial` describes, and measure after each epoch."""
    torch.manual_seed(trial.seed)
    architecture = Architecture(
        activation=trial.activation,
        negative_slope=trial.negative_slope,
        classes=2,
        input=data.input,
    )
    gan = Gan(
        build_generator(data.input, trial.channels),
        build_discriminator(architecture, trial.channels),
    )
    batches = Batches(data.train, trial.batch_size, torch.randperm)
    latents = draw_latents(trial.judged_images)
    real = real_images(data, trial.judged_images)
    checks = []
    for _ in range(trial.epochs):
        gradients = [gan.step(to_channels_last(images.float() / 255)) for images, _ in batches]
        checks.append(_check(gan, latents, real, judge, float(np.mean(gradients))))
    units = sum(hidden.units for hidden in gan.discriminator.hidden_layers())
    return GanResult(checks=tuple(checks), units=units)


def real_images(data: Dataset, count: int) -> Tensor:
    """Return the first test images, float32 [N, C, H, W] in 0..1."""
    return to_channels_last(torch.from_numpy(data.test.images[:count]).float() / 255)


def _check(gan: Gan, latents: Tensor, real: Tensor, judge: ImageJudge, gradient: float) -> GanCheck:
    images = gan.generate(latents)
    health = diagnose(
        gan.discriminator,
        (*torch.split(real, _GENERATED_BATCH), *torch.split(images, _GENERATED_BATCH)),
    )
    return GanCheck(
        quality=judge.judge(images),
        generator_gradient=gradient,
        dead=sum(layer.dead for layer in health),
        pictures=_encode_row(images[:_PICTURES]),
    )


def _encode_row(images: Tensor) -> bytes:
    """Encode images [N, C, H, W] in 0..1 side by side as the PNG of their first channel."""
    row = np.concatenate(list((255 * images[:, 0]).round().byte().numpy()), axis=1)
    buffer = io.BytesIO()
    Image.fromarray(row).save(buffer, format="PNG")
    return buffer.getvalue()
