"""Features inside tar files, for lhotse: registers the storage type `tarred` where this module is imported."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from lhotse.features.io import FeaturesReader, register_reader
from numpy.typing import NDArray

TARRED = "tarred"


@register_reader
class TarredReader(FeaturesReader):  # type: ignore[misc]
    """Reads arrays in numpy's format from a tar file; the key is ``OFFSET,SIZE`` in bytes."""

    name = TARRED

    def __init__(self, storage_path: str, *_args: Any, **_options: Any) -> None:
        super().__init__()
        self._path = storage_path

    def read(
        self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None
    ) -> NDArray[np.float32]:
        """The frames from one offset to another of a stored array ``(T, C)``."""
        offset, size = map(int, key.split(","))
        with open(self._path, "rb") as file:
            file.seek(offset)
            stored: NDArray[np.float32] = np.load(io.BytesIO(file.read(size)), allow_pickle=False)
        return stored[left_offset_frames:right_offset_frames]
