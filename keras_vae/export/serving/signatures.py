"""What a server says that a model takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tensor:
    """An input or output of a signature: the name of its type, as DT_FLOAT, and its shape, -1 where free."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a signature takes and returns, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @classmethod
    def from_json(cls, definition: Mapping[str, Any]) -> Signature:
        """A SignatureDef in JSON, as TF Serving gives it."""
        return cls(_tensors(definition.get("inputs", {})), _tensors(definition.get("outputs", {})))


def _tensors(infos: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: Tensor(
            info.get("dtype", "DT_INVALID"),
            tuple(int(dim.get("size", 0)) for dim in info.get("tensor_shape", {}).get("dim", ())),
        )
        for name, info in infos.items()
    }
