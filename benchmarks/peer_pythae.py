"""pythae's VAE as a detector of unusual images: run by `benchmarks.anomalies` in an environment of its own.

    python peer_pythae.py GIVEN.npz MADE.npz SECONDS LATENTS

trains on `normal`, uint8 (count, 28, 28, 1), for some seconds, and writes scores of `images`: `reconstruction_error`,
and `loss`, the negative ELBO from one draw. The networks are pythae's own for MNIST, the optimizer is Adam at 1e-3.
"""

import sys
import time

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST

BATCH = 64


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255.0)


def main(given: str, made: str, seconds: float, latents: int) -> None:
    torch.manual_seed(0)
    with np.load(given) as arrays:
        normal, images = tensor(arrays["normal"]), tensor(arrays["images"])
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=latents)
    model = VAE(config, encoder=Encoder_Conv_VAE_MNIST(config), decoder=Decoder_Conv_AE_MNIST(config))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    begun = time.perf_counter()
    model.train()
    while time.perf_counter() - begun < seconds:
        rows = torch.randint(len(normal), (BATCH,))
        loss = model({"data": normal[rows]}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    errors, losses = [], []
    with torch.no_grad():
        for part in images.split(500):
            encoded = model.encoder(part)
            mean, log_var = encoded.embedding, encoded.log_covariance
            kl = 0.5 * (log_var.exp() + mean.square() - 1.0 - log_var).sum(dim=1)
            drawn = model.decoder(mean + (0.5 * log_var).exp() * torch.randn_like(mean)).reconstruction
            errors.append((part - model.decoder(mean).reconstruction).square().mean(dim=(1, 2, 3)))
            losses.append(0.5 * (part - drawn).square().sum(dim=(1, 2, 3)) + kl)
    np.savez(made, reconstruction_error=torch.cat(errors).numpy(), loss=torch.cat(losses).numpy())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
