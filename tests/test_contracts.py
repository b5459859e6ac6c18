"""What every saliency promises, whatever it computes: one set of checks, run for each method."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.methods.method import METHODS
from hessprune.methods.table import load_methods
from tests.cases import Inverted, Residual, image, make

X = image(batch=6)
Y = torch.tensor([0, 1, 2, 3, 0, 1])
WHOLE = [(X, Y)]
IN_PARTS = [(X[:1], Y[:1]), (X[1:4], Y[1:4]), (X[4:], Y[4:])]
load_methods()


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> hp.Method:
    method = METHODS[request.param]
    return method(precision="fp64") if "precision" in method.__slots__ else method()


@pytest.fixture(params=[Residual, Inverted])
def model(request: pytest.FixtureRequest, method: hp.Method) -> nn.Module:
    if method.name == "bn_scale" and request.param is Inverted:
        pytest.skip("not every group of this network has a BatchNorm")
    return make(request.param)


def scores(model: nn.Module, method: hp.Method, batches: list[tuple[Tensor, Tensor]] = WHOLE) -> dict[str, Tensor]:
    return hp.saliency(model, hp.find_groups(model, X), batches, method)


def test_shapes_dtypes_and_finite_values(model: nn.Module, method: hp.Method) -> None:
    groups = hp.find_groups(model, X)
    values = hp.saliency(model, groups, WHOLE, method)
    assert list(values) == [group.name for group in groups]
    for group in groups:
        assert values[group].shape == (group.num_units,)
        assert values[group].dtype == torch.float64
        assert values[group].isfinite().all()
        assert values[group].ge(0).all()


def test_the_model_is_left_untouched(model: nn.Module, method: hp.Method) -> None:
    model.train()
    next(model.parameters()).requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags, random = [p.requires_grad for p in model.parameters()], torch.random.get_rng_state()
    scores(model, method)
    assert all(module.training for module in model.modules())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is not None and p.grad.eq(1).all() for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_batching_does_not_matter(model: nn.Module, method: hp.Method) -> None:
    for a, b in zip(scores(model, method).values(), scores(model, method, IN_PARTS).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_same_call_gives_the_same_values(model: nn.Module, method: hp.Method) -> None:
    for a, b in zip(scores(model, method).values(), scores(model, method).values(), strict=True):
        assert torch.equal(a, b)


def test_permuting_units_permutes_the_saliency(method: hp.Method) -> None:
    if method.name == "random":
        pytest.skip("random orders know no weights")
    model, order = make(Residual), torch.tensor([3, 0, 5, 1, 4, 2])
    before = scores(model, method)["inner.0"]
    with torch.no_grad():
        conv, norm = model.inner[0], model.inner[1]
        for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(tensor[order])
        model.outer.weight.copy_(model.outer.weight[:, order])
    torch.testing.assert_close(scores(model, method)["inner.0"], before[order], rtol=1e-9, atol=0)


def generator() -> Iterator[tuple[Tensor, Tensor]]:
    yield X, Y


def test_wrong_data_and_names_are_one_clear_error(method: hp.Method) -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    with pytest.raises(hp.errors.DataError, match="must be re-iterable, got a one-shot generator"):
        hp.saliency(model, groups, generator(), method)
    with pytest.raises(hp.errors.DataError, match="must hold at least one"):
        hp.saliency(model, groups, [], method)
    with torch.no_grad():
        model.stem[0].weight[0] = torch.nan
    with pytest.raises(hp.errors.NumericalError, match=r"got NaN or infinity in 'stem.0.weight'"):
        hp.saliency(model, groups, WHOLE, method)


def test_unknown_methods_name_the_nearest() -> None:
    model = make(Residual)
    with pytest.raises(hp.errors.ArgumentError, match="Did you mean 'magnitude'"):
        hp.saliency(model, hp.find_groups(model, X), WHOLE, "magnitud")
