"""How two peers train a network of ours: diffusers' example for unconditional images, denoising-diffusion-pytorch.

Both packages are optional: what needs them imports them when it is called.
"""

import contextlib
import importlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unveil.interchange.unet2d import from_config, from_weights
from unveil.networks.config import UNetConfig

SIZE = 64
LR = 1e-4
DISTINCT = 500  # images that differ
PEER_BATCH = 16  # denoising-diffusion-pytorch takes no smaller one
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Run = Callable[[int], None]
"""Makes so many steps."""


@dataclass(frozen=True)
class PeerSetting:
    """How a peer trains.

    Attributes:
        batch: images a step.
        images: length of an epoch.
        device: cpu or cuda.
        precision: fp32, bf16 or fp16.
        workers: loading processes of diffusers' loop.
    """

    batch: int
    images: int
    device: str
    precision: str
    workers: int = 0

    @property
    def mixed_precision(self) -> str:
        """The package accelerate's name of the precision."""
        return "no" if self.precision == "fp32" else self.precision


class PeerUNet(nn.Module):
    """UNet2DModel with the weights of our network, called as both peers call theirs.

    A space-to-depth stem, which UNet2DModel has not, is put around it.
    """

    def __init__(self, config: UNetConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        inner = config.replace(
            stem=1, image_size=config.image_size // config.stem, image_channels=config.patch_channels
        )
        values = {key: value for key, value in from_config(inner).items() if not key.startswith("_")}
        self.unet = UNet2DModel(**values)
        self.unet.load_state_dict(from_weights(weights))
        self.stem = config.stem
        # what denoising-diffusion-pytorch asks of a network
        self.channels = self.out_dim = config.image_channels
        self.self_condition = False

    def forward(self, x: Tensor, t: Tensor, condition: None = None) -> Tensor:
        """The predicted noise of images [B, 3, H, W] at timesteps [B]."""
        h = F.pixel_unshuffle(x, self.stem) if self.stem > 1 else x
        predicted: Tensor = self.unet(h, t).sample
        return F.pixel_shuffle(predicted, self.stem) if self.stem > 1 else predicted


def encoded_images() -> list[bytes]:
    """JPEGs of 64 x 64: smooth random colours and a little grain."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(DISTINCT, 3, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
    grain = 0.02 * torch.randn(smooth.shape, generator=generator)
    pixels = (255 * (smooth + grain)).clamp(0, 255).byte().permute(0, 2, 3, 1)
    encoded = []
    for image in pixels.numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=92)
        encoded.append(buffer.getvalue())
    return encoded


class EncodedImages(Dataset[dict[str, Tensor]]):
    """Encoded images in memory, decoded and transformed one by one, as a set of the package datasets does it."""

    def __init__(self, encoded: list[bytes], count: int) -> None:
        from torchvision import transforms

        self.encoded = encoded
        self.count = count
        self.transform = transforms.Compose(
            [
                transforms.Resize(SIZE),
                transforms.CenterCrop(SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        image = Image.open(io.BytesIO(self.encoded[number % len(self.encoded)])).convert("RGB")
        return {"input": self.transform(image)}


class DiffusersTraining:
    """What diffusers' example for unconditional images does in each step, with its default settings."""

    def __init__(self, network: PeerUNet, setting: PeerSetting, encoded: list[bytes]) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.training_utils import EMAModel

        accelerate: Any = importlib.import_module("accelerate")
        self.bar: Any = importlib.import_module("tqdm.auto").tqdm
        self.accelerator = accelerate.Accelerator(mixed_precision=setting.mixed_precision)
        self.dtype = DTYPES[setting.precision]
        self.noising: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(network.parameters(), lr=LR, betas=(0.95, 0.999), weight_decay=1e-6)
        data = EncodedImages(encoded, setting.images)
        loader = DataLoader(data, setting.batch, shuffle=True, num_workers=setting.workers)
        schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=1_000_000)
        self.ema: Any = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        prepared: Any = self.accelerator.prepare(network, optimizer, loader, schedule)
        self.network, self.optimizer, self.loader, self.schedule = prepared
        self.ema.to(self.accelerator.device)
        self.batches = self._endless()
        self.step = 0

    def __call__(self, steps: int) -> None:
        self.network.train()
        with Path(os.devnull).open("w") as nowhere, self.bar(total=steps, file=nowhere) as bar:
            for batch in itertools.islice(self.batches, steps):
                self._step(batch["input"].to(self.dtype), bar)

    def _endless(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self.loader

    def _step(self, clean: Tensor, bar: Any) -> None:
        noise = torch.randn(clean.shape, dtype=self.dtype, device=clean.device)
        t = torch.randint(0, self.noising.config.num_train_timesteps, (len(clean),), device=clean.device)
        noisy = self.noising.add_noise(clean, noise, t)
        with self.accelerator.accumulate(self.network):
            loss = F.mse_loss(self.network(noisy, t).float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.network.parameters())
            bar.update(1)
            self.step += 1
        facts = {"loss": loss.detach().item(), "lr": self.schedule.get_last_lr()[0], "step": self.step}
        facts["ema_decay"] = self.ema.cur_decay_value
        bar.set_postfix(**facts)
        self.accelerator.log(facts, step=self.step)


def ddp_training(network: PeerUNet, setting: PeerSetting, encoded: list[bytes], folder: Path) -> Run:
    """denoising-diffusion-pytorch's own trainer, on files; it neither samples nor saves."""
    package: Any = importlib.import_module("denoising_diffusion_pytorch")
    files = folder / "files"
    write_files(files, encoded, setting.images)
    diffusion = package.GaussianDiffusion(
        network, image_size=SIZE, timesteps=1000, objective="pred_noise", beta_schedule="linear"
    )
    trainer = package.Trainer(
        diffusion,
        str(files),
        train_batch_size=setting.batch,
        augment_horizontal_flip=True,
        train_lr=LR,
        train_num_steps=0,
        save_and_sample_every=1 << 40,
        results_folder=str(folder / "results"),
        amp=setting.precision != "fp32",
        mixed_precision_type=setting.mixed_precision,
        calculate_fid=False,
    )

    def run(steps: int) -> None:
        trainer.train_num_steps += steps
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),  # its progress bar
        ):
            trainer.train()

    return run


def write_files(folder: Path, encoded: list[bytes], count: int) -> None:
    """So many image files; those that are the same share their place on the disk."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:07d}.jpg"
        if number < len(encoded):
            path.write_bytes(encoded[number])
        else:
            path.hardlink_to(folder / f"{number % len(encoded):07d}.jpg")


def missing(*packages: str) -> str | None:
    """The first package that cannot be imported, if any."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"{name} ({error})"
    return None
