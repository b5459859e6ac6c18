"""Packages that bring models: one line where they cannot be imported, whatever the reason."""

import sys
import types

import pytest

from hessprune.errors import MissingDependencyError
from hessprune.foundation.imports import zoo_import

NO_OPERATOR = RuntimeError("operator torchvision::nms does not exist")


class Lazy(types.ModuleType):
    """A package that loads its names when they are used, as transformers does."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.error = error

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ModuleNotFoundError("Could not import module. Are this object's requirements defined?") from self.error


def test_a_package_and_its_names():
    assert zoo_import("math", "sqrt").sqrt(4) == 2


def test_a_missing_package_names_what_to_install():
    with pytest.raises(MissingDependencyError, match=r"`no_such_zoo` is needed .*not installed. Run: pip install no"):
        zoo_import("no_such_zoo")


def test_torchvision_of_another_build_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", Lazy("transformers", NO_OPERATOR))
    with pytest.raises(MissingDependencyError) as caught:
        zoo_import("transformers", "AutoConfig")
    message = str(caught.value)
    assert "\n" not in message
    assert "torchvision is of another build than torch (RuntimeError: operator torchvision::nms does" in message
    assert message.endswith("or run: pip uninstall torchvision")


def test_other_reasons_are_given_as_they_are(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", Lazy("timm", OSError("no space\nleft.")))
    with pytest.raises(MissingDependencyError, match=r"\(OSError: no space left\). Run: pip install --upgrade timm"):
        zoo_import("timm", "create_model")
