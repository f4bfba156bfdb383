"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import platform

import psutil
import pytest

from keras_vae.support import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap alone is trimmed")
def test_freed_memory_between_what_is_in_use_is_given_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    process = psutil.Process()
    blocks = [library.malloc(16 * 1024) for _ in range(8 * 1024)]  # 128 MiB, each too small for a mapping of its own
    for block in blocks:
        ctypes.memset(block, 1, 16 * 1024)
    full = process.memory_info().rss
    kept = blocks[::64]
    for block in set(blocks) - set(kept):
        library.free(block)
    held = process.memory_info().rss
    memory.trim()
    left = process.memory_info().rss
    for block in kept:
        library.free(block)
    assert full - held < 16 * 2**20  # or there would be nothing to see
    assert held - left > 100 * 2**20
