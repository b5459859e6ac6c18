import copy
import json

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.deploy.onnx_model import onnx_feed, onnx_session
from hessprune.errors import ArgumentError, DataError, UnsupportedModelError
from hessprune.foundation.quiet import quiet
from hessprune.quantize.graph import activation_quantizers
from tests.quantize.nets import batches, images, network, operators

pytest.importorskip("onnxruntime")
with quiet():
    pytest.importorskip("torchao")


def prepared(name="resnet", **settings):
    return hp.calibrate(hp.prepare_qat(network(name), images(2), **settings), batches())


def error_of(model, reference) -> float:
    """Return the largest difference on new images, relative to the largest output."""
    with torch.no_grad():
        expected = reference(images(16, 9))
        return float((model(images(16, 9)) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("name", "pruned"),
    [
        ("resnet", True),
        ("inverted", False),
        pytest.param("preresnet", False, marks=pytest.mark.slow),
        pytest.param("densenet", False, marks=pytest.mark.slow),
    ],
)
def test_the_runtime_runs_integers_and_returns_what_torch_returns(name, pruned, tmp_path):
    model = network(name)
    if pruned:
        model = hp.prune(model, images(2), batches(), budget=hp.Budget(macs=0.6), method="magnitude").model
    int8 = hp.convert_qat(hp.calibrate(hp.prepare_qat(model, images(2)), batches()))
    assert error_of(int8, model) < 0.15
    path = hp.export_onnx(int8, images(2), tmp_path / "int8.onnx")
    found = operators(path)
    floats = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "Mul", "AveragePool", "Concat", "ReduceMean"}
    assert not (floats | {"Pad", "Slice"}) & set(found), found
    assert found["QLinearAdd"] == {"resnet": 3, "preresnet": 3, "inverted": 1}.get(name, 0)
    assert found["QGemm"] == 1
    check_same_as_file(int8, path)


def check_same_as_file(int8, path) -> None:
    """The integers of torch are those of ONNX Runtime: bit for bit where its kernels are those that `integers` has."""
    session = onnx_session(path)
    with torch.no_grad():
        ours = int8(images(64, 5))
    theirs = torch.from_numpy(session.run(None, onnx_feed(session, images(64, 5)))[0])
    step = float(ours.max() - ours.min()) / 255
    exact = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert torch.equal(ours, theirs) if exact else float((ours - theirs).abs().median()) <= step


def test_the_model_is_untouched_and_stages_agree():
    model = network("resnet").train()
    state = copy.deepcopy(model.state_dict())
    ready = hp.calibrate(hp.prepare_qat(model, images(2)), batches())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    int8 = hp.convert_qat(ready)
    assert (ready.stage, int8.stage, int8.target) == ("prepared", "converted", "onnxruntime")
    assert error_of(int8, ready) < 0.02  # biases are rounded too
    assert {value.dtype for value in int8.state_dict().values() if value.dim() > 1} == {torch.int8}
    before = ready.layer1.get_submodule("0").conv1.weight.detach().clone()
    with torch.no_grad():
        ready.layer1.get_submodule("0").conv1.weight.mul_(2)  # the grid follows weights that were never run
    doubled = hp.convert_qat(ready)
    assert not torch.equal(before, ready.layer1.get_submodule("0").conv1.weight)
    assert error_of(doubled, ready) < 0.02


def test_symmetric_activations_and_eight_bits_have_their_own_grids():
    symmetric = prepared("vgg", activations="symmetric", weight_bits=8)
    quantizers = list(activation_quantizers(symmetric).values())
    assert all(int(quantizer.calculate_qparams()[1]) == 0 for quantizer in quantizers)
    assert {quantizer.dtype for quantizer in quantizers} == {torch.int8}
    assert error_of(hp.convert_qat(symmetric), network("vgg")) < 0.1


def test_minmax_takes_the_observed_range_and_any_batch_size_runs():
    ready = hp.prepare_qat(network("vgg"), images(1))
    quantizer = next(iter(activation_quantizers(hp.calibrate(ready, batches(), method="minmax")).values()))
    seen = torch.cat([inputs for inputs, _ in batches()])
    assert (float(quantizer.low), float(quantizer.high)) == (float(seen.min()), float(seen.max()))
    int8 = hp.convert_qat(hp.calibrate(ready, batches()))
    for number in (1, 2, 5):
        assert int8(images(number)).shape == (number, 5)


class Residual(nn.Module):
    """A feed-forward layer of a transformer, with the norm after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm, self.last = (
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 4),
        )

    def forward(self, x):
        return self.last(self.norm(x + self.second(torch.relu(self.first(x)))))


def test_sums_and_norms_are_not_fused_to_a_slower_kernel(tmp_path):
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(8, 5, 16)
    ready = hp.calibrate(hp.prepare_qat(model, x), [x])
    fused = operators(hp.export_onnx(model, x, tmp_path / "fp32.onnx"))
    apart = operators(hp.export_onnx(hp.convert_qat(ready), x, tmp_path / "int8.onnx"))
    assert fused["SkipLayerNormalization"] == 1
    assert (apart["SkipLayerNormalization"], apart["Sum"], apart["LayerNormalization"]) == (0, 1, 1)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(10, 8), nn.LayerNorm(8)
        self.first, self.last, self.drop = nn.Linear(8, 16), nn.Linear(16, 3), nn.Dropout(0.5)

    def forward(self, tokens, scale=None):
        x = self.norm(self.words(tokens)).mean(1)
        x = self.drop(torch.relu(self.first(x)))
        return self.last(x if scale is None else x * scale)


def test_what_has_no_integer_kernel_is_named_and_stays_in_fp32(tmp_path):
    torch.manual_seed(0)
    model, tokens = Mixed().eval(), torch.arange(12).reshape(4, 3) % 10
    ready = hp.prepare_qat(model, {"tokens": tokens}, keep_fp32=["la*"])
    assert ready.fp32_layers == {
        "last": "kept on request",
        "words": "no integer kernel for embedding",
        "norm": "no integer kernel for layer_norm",
    }
    data = [({"tokens": tokens}, torch.arange(4) % 3)]
    int8 = hp.convert_qat(hp.calibrate(ready, data))
    assert int8.fp32_layers == ready.fp32_layers
    assert int8.last.weight.dtype == torch.float32
    assert torch.allclose(int8(tokens=tokens), model(tokens), atol=0.05)
    found = operators(hp.export_onnx(int8, {"tokens": tokens}, tmp_path / "int8.onnx"))
    assert found["Gemm"] == 1
    assert hp.evaluate(int8, data).num_samples == 4
    trained = ready.train()
    assert not torch.equal(hp.calibrate(trained, data).train()(tokens=tokens), int8(tokens=tokens))  # dropout


def test_training_improves_a_calibrated_model_freezes_ranges_and_resumes(tmp_path):
    parent = network("resnet")
    with torch.no_grad():
        data = [(inputs, parent(inputs).argmax(1)) for inputs, _ in batches()]
    ready = hp.calibrate(hp.prepare_qat(parent, images(2)), data)
    with torch.no_grad():
        for quantizer in activation_quantizers(ready).values():
            quantizer.set_range(0.3 * quantizer.low, 0.3 * quantizer.high)  # something to repair
    config = hp.QatConfig(epochs=3, lr=1e-3, distill_weight=1.0, checkpoint_every_steps=1)
    whole = hp.finetune(ready, data, data, config=config, teacher=parent)
    assert error_of(whole.model, parent) < error_of(ready, parent)
    quantizers = activation_quantizers(whole.model).values()
    assert whole.best_epoch == 3
    assert not any(bool(quantizer.observer_enabled) for quantizer in quantizers)

    class KilledError(RuntimeError):
        pass

    class Dying(list):
        left = 4

        def __iter__(self):
            for batch in super().__iter__():
                Dying.left -= 1
                if Dying.left < 0:
                    raise KilledError
                yield batch

    with pytest.raises(KilledError):
        hp.finetune(ready, Dying(data), data, config=config, teacher=parent, checkpoint_dir=tmp_path)
    resumed = hp.finetune(ready, data, data, config=config, teacher=parent, checkpoint_dir=tmp_path)
    assert [record.train_loss for record in resumed.history] == [record.train_loss for record in whole.history]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_default_settings_are_those_of_the_paper():
    assert (hp.QatConfig().lr, hp.QatConfig(epochs=1).weight_decay) == (1e-4, 1e-4)


def test_other_targets():
    linear, inputs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)), images(2)
    try:
        ready = hp.prepare_qat(linear, inputs, target="x86-inductor")
    except UnsupportedModelError as error:  # before torch 2.13
        pytest.skip(str(error))
    int8 = hp.convert_qat(hp.calibrate(ready, batches()))
    assert error_of(int8, linear) < 0.1
    assert {value.dtype for value in int8.state_dict().values() if value.dim() > 1} == {torch.int8}


def test_wrong_use_is_named(monkeypatch, tmp_path):
    model, ready = network("vgg"), prepared("vgg")
    int8 = hp.convert_qat(ready)
    for quantised in (ready, nn.Sequential(int8)):
        with pytest.raises(ArgumentError, match="must be a float model, got one that is quantised already"):
            hp.prepare_qat(quantised, images(2))
    with pytest.raises(ArgumentError, match="must be a prepared model, got a converted one"):
        hp.convert_qat(int8)
    with pytest.raises(ArgumentError, match=r"must be a prepared model, got a VGG one\. Pass hp.prepare_qat"):
        hp.calibrate(model, batches())
    fresh = hp.prepare_qat(model, images(2))
    with pytest.raises(
        ArgumentError, match=r"must be calibrated before conversion, got \d+ without a range, in '0: x'"
    ):
        hp.convert_qat(fresh)
    with pytest.raises(ArgumentError, match="must be calibrated before the model is run"):
        hp.evaluate(fresh, batches())
    with pytest.raises(
        ArgumentError, match=r"must be converted to integers first, got a prepared one. Call hp.convert"
    ):
        hp.export_onnx(ready, images(2), tmp_path / "model.onnx")
    with pytest.raises(DataError, match="one-shot"):
        hp.calibrate(fresh, iter(batches()))
    with pytest.raises(ArgumentError, match="`method` must be one of 'minmax', 'mse', got 'kl'"):
        hp.calibrate(fresh, batches(), method="kl")
    with pytest.raises(ArgumentError, match="`rounding` must be one of 'nearest', 'second-order', got 'up'"):
        hp.calibrate(fresh, batches(), rounding="up")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "onnx-runtime"}, "`target` must be one of .* Did you mean 'onnxruntime'"),
        ({"activations": "int4"}, "`activations` must be one of"),
        ({"weight_bits": 4}, "`weight_bits` must be 7 or 8 for target 'onnxruntime', got 4"),
        ({"keep_fp32": ["features.x"]}, "`keep_fp32` must name layers of the model, got 'features.x'. Did you mean"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ArgumentError, match=message):
        hp.prepare_qat(network("vgg"), images(2), **settings)


def test_a_model_without_layers_is_named():
    with pytest.raises(
        UnsupportedModelError, match=r"must hold nn.Linear or convolutions for INT8, got no such layer\. Write layers"
    ):
        hp.prepare_qat(nn.ReLU(), images(2))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_the_remedy_for_a_model_that_is_not_captured_is_one_of_the_caller():
    with pytest.raises(UnsupportedModelError, match=r"must be capturable by .* with any batch size") as caught:
        hp.prepare_qat(nn.Sequential(nn.Conv2d(3, 3, 1), Branching()), images(2))
    assert "dynamic_batch" not in str(caught.value)
    assert "Remove data-dependent Python and fixed batch sizes" in str(caught.value)


def test_facts_are_plain():
    assert json.dumps(prepared("vgg").meta["hessprune"])


def test_sequences_of_any_length_are_taken_where_that_is_asked_for():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, mask):
            return self.head((torch.relu(self.up(x)) * mask[..., None]).sum(1))

    def batch(size, length):
        generator = torch.Generator().manual_seed(length)
        return {"x": torch.randn(size, length, 4, generator=generator), "mask": torch.ones(size, length)}

    torch.manual_seed(0)
    model = Pooled()
    prepared = hp.prepare_qat(model, batch(2, 6), dynamic_length=True)
    int8 = hp.convert_qat(hp.calibrate(prepared, [batch(8, 9), batch(8, 3)]))
    for length in (2, 9):
        expected = model(**batch(5, length))
        assert float((int8(**batch(5, length)) - expected).detach().abs().max()) < 0.1 * float(
            expected.detach().abs().max()
        )
