"""Which numbers to compute with: resolves `--precision auto` and knows what a machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from keras_vae.support.errors import InputError

if TYPE_CHECKING:
    import keras

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")
BFLOAT16_CPU_FLAGS = ("amx_bf16", "avx512_bf16")


def check(precision: str) -> None:
    """Raises InputError unless the name is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")


def check_policy(policy: keras.DTypePolicy) -> None:
    """Refuses a Keras dtype policy whose weights are too coarse for the small steps of training.

    Raises:
        InputError: it is refused.
    """
    if policy.quantization_mode is not None or policy.variable_dtype not in ("float32", "float64"):
        raise InputError(
            f"dtype policy {policy.name!r}: its weights are too coarse to train; give dtype='mixed_bfloat16', "
            "'mixed_float16' or 'float32'"
        )


def choose(precision: str = "auto") -> tuple[str, str]:
    """Picks a Keras dtype policy for this machine.

    bfloat16 keeps float32's range, so it is preferred wherever the hardware multiplies in it: GPUs of
    compute capability 8.0 and up, CPUs with AMX or AVX512-BF16. float16 is for older GPUs with tensor
    cores (7.0 and up).

    Args:
        precision: one of `PRECISIONS`.

    Returns:
        The policy's name and, in words, why it was picked.

    Raises:
        InputError: unknown precision.
    """
    check(precision)
    if precision != "auto":
        return precision, "as asked"
    gpu = _gpu_compute_capability()
    if gpu is not None:
        name, capability = gpu
        version = ".".join(map(str, capability))
        if capability >= (8, 0):
            return "mixed_bfloat16", f"{name}, compute capability {version}, multiplies in bfloat16"
        if capability >= (7, 0):
            return "mixed_float16", f"{name}, compute capability {version}, has float16 tensor cores"
        return "float32", f"{name}, compute capability {version}, has no tensor cores"
    return _choose_for_cpu(_cpu_flags())


def _choose_for_cpu(flags: frozenset[str]) -> tuple[str, str]:
    found = [flag for flag in BFLOAT16_CPU_FLAGS if flag in flags]
    if found:
        return "mixed_bfloat16", f"no GPU; the CPU multiplies in bfloat16 ({', '.join(found)})"
    return "float32", "no GPU; the CPU has neither AMX nor AVX512-BF16"


def _gpu_compute_capability() -> tuple[str, tuple[int, int]] | None:
    """Name and capability of the first GPU; (0, 0) where TensorFlow does not tell; None without a GPU."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    details = tf.config.experimental.get_device_details(gpus[0])
    return details.get("device_name", "GPU"), details.get("compute_capability", (0, 0))


def _cpu_flags() -> frozenset[str]:
    # Only Linux lists them in a file; elsewhere float32 is the safe answer.
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, ":").partition(":")[2].split())


def needs_xla(compute_dtype: str) -> bool:
    """Whether this machine can compute in the dtype only through XLA.

    TensorFlow has no float16 convolutions for the CPU: it falls back to one that did not finish twelve
    training steps of 64 images in eight minutes, while XLA's made 185 images/s.
    """
    return compute_dtype == "float16" and _gpu_compute_capability() is None
