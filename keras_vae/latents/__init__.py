"""Working with latents: attributes, directions, walks, measures."""
