import torch
from torch import nn

from hessprune.lab import identity
from hessprune.lab.identity import CODE, architecture_of, code_of
from tests.cases import Plain, Residual, make


def test_every_part_exists():
    for part in CODE:
        assert (identity.PACKAGE / part).is_dir() or (identity.PACKAGE / f"{part}.py").is_file()


def test_code_changes_with_its_sources_and_the_foundation_alone(tmp_path, monkeypatch):
    def digest() -> str:
        code_of.cache_clear()
        return code_of("planning", "run/stages")

    for name in ("planning/cost.py", "surgery/apply.py", "run/stages.py", "run/store.py", "_state.py", "__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(identity, "PACKAGE", tmp_path)
    seen = [digest()]
    for name in ("surgery/apply.py", "run/store.py", "__init__.py", "planning/cost.py", "run/stages.py", "_state.py"):
        (tmp_path / name).write_text("changed")
        seen.append(digest())
    code_of.cache_clear()
    assert len(set(seen[:4])) == 1
    assert len(set(seen)) == 4


def test_an_architecture_is_more_than_its_weights():
    linear = nn.Linear(2, 2)
    kinds = [nn.Sequential(linear, nn.ReLU()), nn.Sequential(linear, nn.GELU()), make(Plain), make(Residual)]
    assert len({architecture_of(model) for model in kinds}) == 4
    assert architecture_of(make(Plain)) == architecture_of(make(Plain))


def test_models_without_a_source_file_have_an_architecture_too():
    scope: dict[str, type] = {"nn": nn}
    exec("class Odd(nn.Module):\n    pass", scope)
    assert len(architecture_of(scope["Odd"]())) == 64
    assert len(architecture_of(torch.fx.symbolic_trace(nn.ReLU()))) == 64
