"""How good a model is: measures of images, each a module."""
