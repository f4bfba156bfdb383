"""Deep features: the perceptual loss, networks that judge, and where their weights are."""
