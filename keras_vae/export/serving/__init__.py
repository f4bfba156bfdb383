"""A kit for TensorFlow Serving: configurations to copy, and clients for its REST and gRPC ports. See README.md here."""
