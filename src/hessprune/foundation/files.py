"""Files that are whole or absent: every write goes to a temporary neighbour first and is then moved into place."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hessprune.errors import DataError, OutputError


def writable_folder(path: Path | str) -> Path:
    """Create the folder `path` where it is missing, and make sure that a file can be written into it.

    Raises:
        OutputError: The folder cannot be created, or is read-only or full.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable-", dir=folder) as file:
            file.write(b"1")
    except OSError as error:
        raise OutputError(_refusal(folder, error)) from error
    return folder


def writable_file(path: Path | str) -> Path:
    """Return the path of a file that may be written; only a folder in its place is refused.

    Raises:
        OutputError: The path is that of a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"output must be a file, got the folder '{path}'. Add the name of a file to the path.")
    return path


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block it takes the place of `path`, in one step.

    A block that raises, or a process that is killed, leaves the former file as it was.

    Raises:
        OutputError: The path is that of a folder, or the operating system refuses the write.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target = writable_file(path)
    # The suffix stays last: some writers choose the format by it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:  # safetensors wraps what the operating system says
        raise OutputError(_refusal(target, error)) from error
    finally:
        _discard(temporary)


@contextmanager
def staging(folder: Path | str) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; after the block its files move up, the last by name first.

    For writers that write several files which belong together; a block that raises leaves `folder` as it was.

    Raises:
        OutputError: The operating system refuses the write.
    """
    target = writable_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=target) as temporary:
            yield Path(temporary)
            for file in sorted(Path(temporary).iterdir(), reverse=True):
                file.replace(target / file.name)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(_refusal(target, error)) from error


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write `data` to `path` atomically, creating parent folders; an existing file is replaced.

    Raises:
        OutputError: The folder is read-only, the disk is full, or a parent is a file.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # without it, a power cut after the rename can leave an empty file
    return Path(path)


def write_text(path: Path | str, text: str) -> Path:
    """Write `text` as UTF-8; otherwise as `write_bytes`."""
    return write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> Path:
    """Write `value` as indented JSON; NaN and infinity are refused by `ValueError`, since JSON has none."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        DataError: The file is missing, cannot be read, or is not JSON (a truncated one, say).
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"file must exist, got '{path}', which does not. Check the path.") from error
    except OSError as error:
        raise DataError(f"file must be readable, got '{path}' ({error.strerror or error}).") from error
    except ValueError as error:
        raise DataError(f"file must hold JSON, got '{path}', which does not parse ({error}). Write it anew.") from error


def exists(path: Path | str) -> bool:
    """Return whether there is a file or folder; a name that no file can have is none.

    Example:
        >>> exists("x" * 10_000)
        False
    """
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def sha256(data: bytes | str) -> str:
    """Return the SHA-256 of bytes or text, in hexadecimal.

    Example:
        >>> sha256("")[:8]
        'e3b0c442'
    """
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def _refusal(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"output must be writable, got '{path}' ({reason}). Free the disk or choose another folder."


def _discard(temporary: Path) -> None:
    """Remove what an interrupted write left, if the folder still allows it."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError:  # a read-only folder or a file as parent: nothing was written there
        return
