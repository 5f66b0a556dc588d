"""Write tensors as a safetensors file, hashed and looked over on the way.

The library's own writer would have its file read a second time for the SHA-256. Neither writing nor hashing holds
Python's lock, so training goes on beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.core.errors import UserError

CHUNK_BYTES = 4 * 2**20
"""Written and hashed at once: small enough to be in the processor's cache still."""
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As https://huggingface.co/docs/safetensors names them."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write contiguous CPU tensors; the SHA-256 of the file.

    Raises:
        UserError: A tensor holds NaN or infinity.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, place = {}, 0
    for name in names:
        tensor = tensors[name]
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            _write(file, memoryview(piece), digest)
        for name in names:
            refuse_not_finite(name, tensors[name])
            if tensors[name].numel():
                _write(file, tensors[name].reshape(-1).view(torch.uint8).numpy().data, digest)
    return digest.hexdigest()


def refuse_not_finite(name: str, tensor: Tensor) -> None:
    """Raises:
    UserError: A number of the tensor is NaN or infinite.
    """
    if not tensor.is_floating_point() or not tensor.numel() or tensor.element_size() == 1:
        return
    least, most = torch.aminmax(tensor.detach())
    if not bool(torch.isfinite(least) & torch.isfinite(most)):
        raise UserError(
            f'"{name}" holds numbers that are not finite; it is not saved.',
            code="not_finite",
            remedy="Go on from the last checkpoint with a lower train.lr, or with model.precision=fp32.",
        )


def _write(file: object, data: memoryview, digest: object) -> None:
    for first in range(0, len(data), CHUNK_BYTES):
        chunk = data[first : first + CHUNK_BYTES]
        digest.update(chunk)  # type: ignore[attr-defined]
        while len(chunk):
            chunk = chunk[file.write(chunk) :]  # type: ignore[attr-defined]
