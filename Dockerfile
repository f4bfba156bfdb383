# Training on an NVIDIA GPU. The host needs the driver and the NVIDIA Container Toolkit.
#
#   docker build -t keras-vae .
#   docker run --rm --gpus all keras-vae doctor
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" keras-vae train --data faces --out runs/faces
#
# TensorFlow 2.21 is built for CUDA 12; its extra and-cuda brings cuDNN and the other libraries.
FROM nvidia/cuda:12.9.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# What takes gigabytes comes first, in a layer that changes of the project leave alone.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir \
        "tensorflow[and-cuda]>=2.21,<2.22" \
        "onnxruntime-gpu>=1.26,<1.27"

COPY pyproject.toml README.md LICENSE /src/
COPY keras_vae /src/keras_vae
COPY export /src/export
COPY saved_models /src/saved_models
RUN /opt/venv/bin/python -m pip install --no-cache-dir "/src[demo,gpu]" && rm -rf /src

# Any user may run it: Keras, TFDS and Matplotlib keep their files in a folder that all can write to.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/keras-vae
RUN useradd --uid 10001 --create-home keras-vae \
    && chmod 1777 /home/keras-vae \
    && mkdir -m 1777 /work
USER keras-vae
WORKDIR /work

ENTRYPOINT ["keras-vae"]
CMD ["--help"]
