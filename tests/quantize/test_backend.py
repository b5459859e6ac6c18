"""Backends: one file each, found by discovery."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError, MissingDependencyError, RecipeError, UnsupportedModelError
from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import seeded
from hessprune.lab.recipe import parse_recipe
from hessprune.quantize import backends
from hessprune.quantize.backend import find_backend, known_backends
from tests.quantize.nets import batches, images, network

pytest.importorskip("onnxruntime")
with quiet():
    pytest.importorskip("torchao")

with seeded(0):
    SMALL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))

EIGHT_BITS = """
from hessprune.quantize.backend import Backend


def make_quantizer(activations, weight_bits, keep_fp32):
    from hessprune.quantize.quantizer import FusionQuantizer
    from hessprune.quantize.ranges import activation_spec, weight_specs

    return FusionQuantizer(activation_spec(activations), weight_specs(weight_bits), keep_fp32)


BACKEND = Backend(
    name="accelerator",
    package="torch",
    make_quantizer=make_quantizer,
    activations=("symmetric",),
    weight_bits=(8,),
    execution="graph",
    tolerance=1.0,  # 8-bit weights saturate on x86 processors without VNNI
)
"""

BLIND = """
from hessprune.quantize.backend import Backend


def make_quantizer(activations, weight_bits, keep_fp32):
    from torchao.quantization.pt2e.quantizer import Quantizer

    class Blind(Quantizer):
        def annotate(self, model):
            return model

        def validate(self, model):
            pass

    return Blind()


BACKEND = Backend(name="blind", package="torch", make_quantizer=make_quantizer)
"""


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Put a file into the folder of backends, for one test."""
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        known_backends.cache_clear()
        importlib.invalidate_caches()

    yield write
    known_backends.cache_clear()
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(f"{backends.__name__}.{file.stem}", None)
        vars(backends).pop(file.stem, None)


def test_every_file_of_the_folder_is_a_backend() -> None:
    files = {file.stem for file in Path(backends.__path__[0]).glob("[!_]*.py")}
    assert {name.replace("-", "_") for name in known_backends()} == files
    assert {name: (found.package, found.execution) for name, found in known_backends().items()} == {
        "onnxruntime": ("onnxruntime", "integers"),
        "openvino": ("openvino", "integers"),
        "x86-inductor": ("torchao", "graph"),
    }


def test_a_backend_is_added_by_one_file(add, tmp_path) -> None:
    with pytest.raises(ArgumentError, match=r"`target` must be one of 'onnxruntime', 'openvino', 'x86-inductor'"):
        hp.prepare_qat(SMALL, images(2), target="accelerator")
    add("accelerator", EIGHT_BITS)
    ready = hp.prepare_qat(SMALL, images(2), target="accelerator", activations="symmetric", weight_bits=8)
    int8 = hp.convert_qat(hp.calibrate(ready, batches()))
    assert (int8.target, int8.stage, int8.export_tolerance) == ("accelerator", "converted", 1.0)
    x = images(8, 3)
    with torch.no_grad():
        assert float((int8(x) - SMALL(x)).abs().max()) < 0.1 * float(SMALL(x).abs().max())
        assert torch.equal(int8(x), torch.fx.GraphModule(int8, int8.graph)(x))  # as `execution` says
    assert hp.export_onnx(int8, images(2), tmp_path / "int8.onnx").exists()
    scheme = hp.Scheme(target="accelerator", activations="symmetric", weight_bits=8)
    assert len(hp.quantization_sensitivity(SMALL, images(2), batches(), scheme=scheme)) == 2
    for settings in ({}, {"activations": "symmetric"}):
        with pytest.raises(ArgumentError, match=r"`activations` must be one of 'symmetric'|must be 8 for target 'acc"):
            hp.prepare_qat(SMALL, images(2), target="accelerator", **settings)
    recipe = {"model": {"weights": "a"}, "prune": {"budget": {"macs": 0.5}}}
    section = {"target": "accelerator", "activations": "symmetric", "weight_bits": 8}
    assert parse_recipe(recipe | {"quantize": section}).quantize.scheme == scheme
    with pytest.raises(RecipeError, match=r"`target` must be one of 'accelerator', .* Did you mean 'accelerator'"):
        parse_recipe(recipe | {"quantize": {"target": "acelerator"}})


def test_execution_decides_whether_a_converted_model_computes_integers(add) -> None:
    """The same quantised network with and without the integer kernels of `exact`."""
    outputs = {}
    for execution in ("graph", "integers"):
        add("accelerator", EIGHT_BITS.replace('execution="graph"', f'execution="{execution}"'))
        sys.modules.pop(f"{backends.__name__}.accelerator", None)
        known_backends.cache_clear()
        model = network("resnet")
        ready = hp.prepare_qat(model, images(2), target="accelerator", activations="symmetric", weight_bits=8)
        int8 = hp.convert_qat(hp.calibrate(ready, batches()))
        with torch.no_grad():
            outputs[execution] = int8(images(8, 3))
            graph = torch.fx.GraphModule(int8, int8.graph)(images(8, 3))
        assert torch.equal(outputs[execution], graph) == (execution == "graph")
    assert not torch.equal(outputs["graph"], outputs["integers"])


def test_a_target_that_finds_nothing_is_named(add) -> None:
    add("blind", BLIND)
    with pytest.raises(UnsupportedModelError, match=r"got none for 'blind' with torch .* Use target='onnxruntime'"):
        hp.prepare_qat(network("vgg"), images(2), target="blind")


def test_a_graph_that_torchaos_quantizer_refuses_is_named(add) -> None:
    refusing = BLIND.replace("return model", 'raise NotImplementedError("Several nodes.\\nMore.")')
    add("blind", refusing)
    with pytest.raises(
        UnsupportedModelError, match=r"must support the model, got 'blind': Several nodes, with torch .* U"
    ):
        hp.prepare_qat(network("vgg"), images(2), target="blind")


def test_the_quantizer_of_x86_gives_one_error_of_ours_for_concatenations() -> None:
    with pytest.raises(UnsupportedModelError, match=r"`target` must .*'x86-inductor'.* Use target='onnxruntime'"):
        hp.prepare_qat(network("densenet"), images(2), target="x86-inductor")


def test_grids_without_kernels_are_named() -> None:
    backend = find_backend("onnxruntime")
    backend.check_grids("symmetric", 8)
    for bits in (4, 7.0, "7", None):
        with pytest.raises(
            ArgumentError, match=r"`weight_bits` must be 7 or 8 for target 'onnxruntime', got .* Pass wei"
        ):
            backend.check_grids("symmetric", bits)
    with pytest.raises(ArgumentError, match="`activations` must be one of 'asymmetric', 'symmetric', got 'int4'"):
        hp.Scheme(activations="int4")
    with pytest.raises(ArgumentError, match=r"`target` must be one of .*, got 'onnx-runtime'. Did you mean 'onnxrun"):
        hp.Scheme(target="onnx-runtime")


def test_a_missing_package_is_named(monkeypatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    with pytest.raises(MissingDependencyError, match=r"`target` 'openvino' needs the package `openvino`.*pip install"):
        hp.prepare_qat(network("vgg"), images(2), target="openvino")
    replace(find_backend("openvino"), package="torch").check_installed()


def test_the_names_load_neither_torchao_nor_the_room() -> None:
    """`hessprune/__init__` is left out, because it may load whatever it shows."""
    source = Path(hp.__file__).parent
    program = f"""
import importlib, json, sys, types
package = types.ModuleType("hessprune")
package.__path__ = [{str(source)!r}]
sys.modules["hessprune"] = package
importlib.import_module("hessprune.quantize.config").Scheme(target="x86-inductor")
loaded = [name for name in sys.modules if name.startswith("hessprune.quantize.")]
print(json.dumps([sorted(loaded), "torchao" in sys.modules]))
importlib.import_module("hessprune.quantize.choice")
importlib.import_module("hessprune.latency.table")
print(json.dumps("torchao" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (loaded, has_torchao), room_has_torchao = map(json.loads, done.stdout.splitlines())
    folder = {"backends", *(f"backends.{file.stem}" for file in (source / "quantize/backends").glob("[!_]*.py"))}
    assert {name.removeprefix("hessprune.quantize.") for name in loaded} == {"backend", "config", *folder}
    assert not has_torchao
    assert not room_has_torchao
