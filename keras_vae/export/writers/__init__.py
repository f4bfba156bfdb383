"""A file for each export format, and what they share of TensorFlow and ONNX graphs."""
