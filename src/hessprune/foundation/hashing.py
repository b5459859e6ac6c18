"""Hashes of files and of tensors, by which damage is noticed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def file_sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file, in hexadecimal; the file is read in pieces.

    Example:
        >>> import tempfile
        >>> from hessprune.foundation.hashing import file_sha256
        >>> file = Path(tempfile.mkdtemp(), "empty")
        >>> _ = file.write_bytes(b"")
        >>> file_sha256(file)[:8]
        'e3b0c442'
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes, dtypes and values of tensors, whatever their order.

    Example:
        >>> from hessprune.foundation.hashing import tensors_sha256
        >>> a, b = torch.zeros(1), torch.ones(1)
        >>> tensors_sha256({"a": a, "b": b}) == tensors_sha256({"b": b, "a": a})
        True
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> Any:
    """Return the numbers of a tensor as bytes, whatever its layout and device; none of one without numbers."""
    tensor = tensor.detach()
    if tensor.is_meta:
        return b""
    tensor = (tensor if tensor.layout == torch.strided else tensor.to_dense()).cpu().resolve_conj().resolve_neg()
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over names, shapes, dtypes and values of a model's parameters and buffers."""
    return tensors_sha256(model.state_dict())
