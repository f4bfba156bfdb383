"""The same networks and losses in PyTorch, as its users write them.

What `benchmarks.steps` runs beside ours: the paper's encoder and decoder, VGG16's features with the weights of
ours, Adam (fused), channels_last, autocast, and the step's loss under `torch.compile` where that is asked for. It
reports nothing but the loss: ours counts its metrics besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.operations import LAYERS, VGG16

LEAKY_SLOPE = 0.2
MEANS = (103.939, 116.779, 123.68)  # ImageNet's, blue, green, red


class Encoder(nn.Module):
    def __init__(self, size: int, latent_dim: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for index in range(4):
            filters = width * 2**index
            layers += [nn.Conv2d(channels, filters, 4, 2, 1, bias=False), *_normalized(filters)]
            channels = filters
        self.layers = nn.Sequential(*layers, nn.Flatten())
        features = channels * (size // 16) ** 2
        self.mean, self.log_var = nn.Linear(features, latent_dim), nn.Linear(features, latent_dim)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.layers(images)
        log_var = self.log_var(features).float()
        inside = log_var.clamp(-10.0, 2.0)  # as ours, `keras_vae.networks.SafeLogVariance`
        excess = log_var - inside
        return self.mean(features).float(), inside + excess.sign() * excess.abs().log1p()


class Doubled(nn.Module):
    """Nearest x2 upsampling and the border repeated: the faster of five ways that were tried, eager and compiled.

    Autocast would pad in float32, with a copy there and back. Compiled, PyTorch 2.13's `replication_pad2d` fails with
    channels_last (its backward pass asserts another layout), and of an upsampling written as an expansion the compiler
    makes better loops than of `nn.Upsample`.
    """

    def __init__(self, compiled: bool) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.compiled:
            with torch.autocast(x.device.type, enabled=False):
                return functional.pad(functional.interpolate(x, scale_factor=2), (1, 1, 1, 1), mode="replicate")
        batch, channels, height, width = x.shape
        x = x[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
        x = x.reshape(batch, channels, 2 * height, 2 * width).contiguous(memory_format=torch.channels_last)
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
        return torch.cat([x[:, :, :, :1], x, x[:, :, :, -1:]], 3)


class Decoder(nn.Module):
    def __init__(self, size: int, latent_dim: int, width: int, compiled: bool) -> None:
        super().__init__()
        small, channels = size // 16, 8 * width
        self.small = small
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, channels * small**2),
            nn.Unflatten(1, (channels, small, small)),
        ]
        for index in range(1, 5):
            filters = 3 if index == 4 else width * 2 ** (3 - index)
            layers += [Doubled(compiled), nn.Conv2d(channels, filters, 3, bias=index == 4)]
            layers += [nn.Sigmoid()] if index == 4 else _normalized(filters)
            channels = filters
        self.layers = nn.Sequential(*layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)


def _normalized(filters: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(filters, eps=1e-3), nn.LeakyReLU(LEAKY_SLOPE)]


class Features(nn.Module):
    """VGG16 up to the last of the blocks compared, frozen."""

    def __init__(self, blocks: tuple[int, ...], weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.blocks = blocks
        self.convolutions = nn.ModuleDict()
        channels = 3
        for block in range(max(blocks) + 1):
            used = VGG16[block] if block < max(blocks) else VGG16[block][:1]
            for index, filters in enumerate(used):
                name = f"block{block + 1}_conv{index + 1}"
                self.convolutions[name] = nn.Conv2d(channels, filters, 3, padding=1)
                self.convolutions[name].weight.data = (
                    torch.from_numpy(weights[f"{name}/0"]).permute(3, 2, 0, 1).contiguous()
                )
                self.convolutions[name].bias.data = torch.from_numpy(weights[f"{name}/1"])
                channels = filters
        self.register_buffer("means", torch.tensor(MEANS).reshape(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = 255.0 * images.flip(1) - self.means
        found = []
        for block in range(max(self.blocks) + 1):
            for index in range(len(VGG16[block])):
                x = functional.relu(self.convolutions[f"block{block + 1}_conv{index + 1}"](x))
                if index == 0 and block in self.blocks:
                    found.append(x)
                    if block == max(self.blocks):
                        return found
            x = functional.max_pool2d(x, 2)
        return found


class Step:
    """A training step: call it with images, float32 (batch, 3, size, size) in [0, 1], channels_last.

    Args:
        objective: "plain", squared error over twice 0.05 and the KL; "vae-123" or "vae-345", features and the KL.
        precision: "float32", or the dtype of autocast, "bfloat16" or "float16".
        compiled: whether the loss goes through `torch.compile`.
        vgg: arrays "block1_conv1/0" and so on, of the features' network.
        graphs: whether what is compiled goes into CUDA graphs too (`mode="reduce-overhead"`).
    """

    def __init__(
        self,
        objective: str,
        precision: str,
        size: int,
        width: int,
        compiled: bool,
        vgg: dict[str, np.ndarray],
        device: str,
        graphs: bool = False,
    ) -> None:
        torch.manual_seed(0)
        layout: Any = {"device": device, "memory_format": torch.channels_last}
        self.encoder = Encoder(size, 100, width).to(**layout)
        self.decoder = Decoder(size, 100, width, compiled).to(**layout)
        self.features = None if objective == "plain" else Features(LAYERS[objective], vgg).to(**layout)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=5e-4, fused=True)
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "float16")
        self.autocast: Callable[[], Any] = lambda: torch.autocast(
            device, getattr(torch, precision), enabled=precision != "float32"
        )
        self.loss: Callable[[torch.Tensor], torch.Tensor] = self._loss
        self.graphs = graphs
        if compiled:
            self.loss = torch.compile(self._loss, mode="reduce-overhead" if graphs else None)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Takes over the weights of our encoder and decoder, arrays by role and path: "decoder/conv1/kernel"."""
        small = self.decoder.small
        blocks = {
            role: [f"conv{index}{part}" for index in range(1, 5) for part in ("", norm)]
            for role, norm in (("encoder", "_norm"), ("decoder", "/norm"))
        }
        layers = {
            "encoder": (
                [*self.encoder.layers, self.encoder.mean, self.encoder.log_var],
                [*blocks["encoder"], "mean", "raw_log_var"],
            ),
            "decoder": (list(self.decoder.layers), ["project", *blocks["decoder"]]),
        }
        for role, (modules, names) in layers.items():
            learning = [module for module in modules if list(module.parameters())]
            for module, layer in zip(learning, names, strict=False):  # the decoder's last is not normalized
                name = f"{role}/{layer}"
                parts = {
                    path.rpartition("/")[2]: torch.from_numpy(weights[path])
                    for path in weights
                    if path.rpartition("/")[0] == name
                }
                if isinstance(module, nn.BatchNorm2d):
                    parameters = {"weight": parts["gamma"], "bias": parts["beta"]}
                elif isinstance(module, nn.Conv2d):
                    parameters = {"weight": parts["kernel"].permute(3, 2, 0, 1)}
                elif role == "encoder":  # Keras flattens channels last, PyTorch channels first
                    kernel = parts["kernel"].reshape(small, small, -1, module.out_features)
                    parameters = {"weight": kernel.permute(3, 2, 0, 1).flatten(1)}
                else:
                    kernel = parts["kernel"].reshape(-1, small, small, module.out_features // small**2)
                    parameters = {"weight": kernel.permute(3, 1, 2, 0).flatten(0, 2)}
                    parts["bias"] = parts["bias"].reshape(small, small, -1).permute(2, 0, 1).flatten()
                if "bias" in parts:
                    parameters["bias"] = parts["bias"]
                for key, value in parameters.items():
                    getattr(module, key).data.copy_(value)

    def terms(self, images: torch.Tensor) -> dict[str, float]:
        """The loss's terms with latents at the posterior's mean, nothing drawn, to compare with ours."""
        with torch.no_grad(), self.autocast():
            mean, log_var = self.encoder(images)
            decoded = self.decoder(mean).float()
            kl = (0.5 * (log_var.exp() + mean.square() - 1.0 - log_var).sum(1)).mean()
            found = {"kl": kl, "squared_error": (images - decoded).square().sum((1, 2, 3)).mean()}
            if self.features is not None:
                pairs = zip(self.features(images), self.features(decoded), strict=True)
                found["perceptual"] = sum(
                    (0.5 * (one.float() - other.float()).square().mean() for one, other in pairs), torch.zeros(())
                )
        return {name: value.item() for name, value in found.items()}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.loss(images)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _loss(self, images: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            mean, log_var = self.encoder(images)
            decoded = self.decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)).float()
            if self.features is not None:
                with torch.no_grad():
                    targets = self.features(images)
                found = self.features(decoded)
        kl = 0.5 * (log_var.exp() + mean.square() - 1.0 - log_var).sum(1)
        if self.features is None:
            reconstruction = (images - decoded).square().sum((1, 2, 3)) / 0.1
        else:
            reconstruction = torch.stack(
                [
                    0.25 * (one.float() - other.float()).square().mean((1, 2, 3))
                    for one, other in zip(found, targets, strict=True)
                ]
            ).sum(0)
        return (reconstruction + kl).mean()
