"""The variational autoencoder: networks, distributions, objective, prior."""
