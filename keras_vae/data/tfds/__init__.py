"""TensorFlow Datasets: sets by name, their preparation, and a set built from a folder."""
