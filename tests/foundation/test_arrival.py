import collections
import tempfile
import threading

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import hessprune as hp
from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.arrival import arrived, plain_modules, received
from hessprune.foundation.wrappers import is_wrapper

X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(16) % 4)]
HALF = hp.Budget(macs=0.5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.f(self.b(self.a(x).relu()).relu().mean((2, 3)))


def compiled(module):
    return torch.compile(module, backend="eager")


@compiled
def _relu(x):
    return x.relu()


class CallsCompiled(Net):
    def forward(self, x):
        return self.f(_relu(self.b(_relu(self.a(x)))).mean((2, 3)))


def with_compiled_parts():
    net = Net()
    net.b = compiled(net.b)
    net.f.compile(backend="eager")
    return net


def compiled_in_place():
    net = Net()
    net.compile(backend="eager")
    return net


def with_compiled_forward():
    net = Net()
    net.forward = compiled(net.forward)
    return net


WRAPPED = {
    "compiled": lambda: compiled(Net()),
    "parts": with_compiled_parts,
    "in place": compiled_in_place,
    "forward": with_compiled_forward,
    "function": CallsCompiled,
    "data parallel": lambda: nn.DataParallel(Net()),
    "averaged": lambda: AveragedModel(Net()),
    "nested": lambda: nn.DataParallel(compiled(with_compiled_parts())),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_models_prune_as_the_model_inside(make):
    torch.manual_seed(0)
    net = make()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    groups = hp.find_groups(net, X[:1], ignore=["f"])
    assert [group.name for group in groups] == ["a", "b"]
    hp.saliency(net, groups, BATCHES, "hap")
    result = hp.prune(net, X[:1], BATCHES, budget=HALF)
    assert type(result.model) in (Net, CallsCompiled)
    assert not any(map(is_wrapper, result.model.modules()))
    assert all("_orig_mod" not in name and "module" not in name for name in result.model.state_dict())
    again = hp.load(result.save(tempfile.mkdtemp()), make)
    assert torch.equal(again(X), result.model.eval()(X))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_wrapped_models_train_and_are_evaluated_as_the_model_inside():
    torch.manual_seed(0)
    net = nn.DataParallel(with_compiled_parts())
    result = hp.finetune(net, BATCHES, BATCHES, config=hp.FinetuneConfig(epochs=1))
    assert type(result.model) is Net
    assert hp.evaluate(net, BATCHES) == hp.evaluate(arrived(net), BATCHES)
    assert hp.cost(net, X[:1]) == hp.cost(Net(), X[:1])


def test_modules_to_ignore_are_those_of_the_wrapped_model():
    net = compiled(with_compiled_parts())
    assert [group.name for group in hp.find_groups(net, X[:1], ignore=[net.b])] == ["a"]
    found = hp.prune(
        net, X[:1], BATCHES, budget=hp.Budget(units=0.6), ranking=hp.Ranking(ignore=(net.a,)), method="magnitude"
    )
    assert found.plan.removed["b"]
    assert "a" not in found.plan.removed


def test_names_are_those_inside_the_wrappers():
    names = dict.fromkeys(name for name, _ in plain_modules(nn.DataParallel(with_compiled_parts())))
    assert list(names) == ["", "a", "b", "f"]


def test_a_copy_shares_values_but_neither_flags_nor_buffers():
    net = nn.BatchNorm1d(2)
    copy = arrived(net)
    assert isinstance(copy, nn.BatchNorm1d)
    copy.weight.requires_grad_(False)
    copy.eval().running_mean += 1
    assert copy.weight.data_ptr() == net.weight.data_ptr()
    assert net.weight.requires_grad
    assert net.training
    assert not net.running_mean.any()


def test_shared_parameters_and_modules_stay_shared():
    net = nn.Sequential(nn.Linear(2, 2), compiled(nn.Linear(2, 2)), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    net.append(net[1])
    copy = arrived(net)
    assert copy[2].weight is copy[0].weight
    assert copy[3] is copy[1]
    assert type(copy[1]) is nn.Linear


@pytest.mark.parametrize("value", [torch.nn.Linear, {}, "net.pt", None])
def test_what_is_no_module_is_refused(value):
    with pytest.raises(ArgumentError, match=r"`model` must be a torch.nn.Module, got .*Pass the module itself"):
        hp.find_groups(value, X[:1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, X)])
def test_torchscript_is_refused_where_it_would_be_changed(make):
    scripted = make(Net().eval())
    for model, name in ((scripted, ""), (nn.Sequential(scripted), "0")):
        with pytest.raises(UnsupportedModelError, match=f"got TorchScript in module '{name}'. Pass the model"):
            hp.prune(model, X[:1], BATCHES, budget=HALF)
    assert hp.evaluate(scripted, BATCHES).num_samples == 16


def test_an_exported_program_is_not_its_module():
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    with pytest.raises(ArgumentError, match=r"got ExportedProgram\. Pass program\.module\(\)"):
        hp.prune(program, torch.zeros(1, 2), BATCHES, budget=HALF)


def test_an_attribute_that_cannot_be_copied_is_named():
    net = nn.Sequential(Net())
    net[0].lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match=r"copyable by copy.deepcopy, got TypeError in '0.lock': .*Delete"):
        arrived(net)
    assert hp.evaluate(net, BATCHES).num_samples == 16


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.f = (
            nn.LazyConv2d(8, 3),
            nn.LazyBatchNorm2d(),
            nn.LazyConv2d(8, 3),
            nn.LazyLinear(4),
        )

    def forward(self, x):
        return self.f(self.b(self.n(self.a(x)).relu()).relu().mean((2, 3)))


def test_lazy_layers_without_data_are_named_and_one_batch_helps():
    torch.manual_seed(0)
    net = Lazy()
    for call in (
        lambda: hp.prune(net, X[:1], BATCHES, budget=HALF, method="magnitude"),
        lambda: hp.find_groups(net, X[:1]),
        lambda: hp.evaluate(net, BATCHES),
        lambda: hp.finetune(net, BATCHES, BATCHES, config=hp.FinetuneConfig(epochs=1)),
    ):
        with pytest.raises(
            UnsupportedModelError, match=r"'a' \(LazyConv2d\) and 3 more\. Run one batch .*model\(inputs\)"
        ):
            call()
    net(X)
    assert hp.prune(net, X[:1], BATCHES, budget=HALF, method="magnitude").plan.num_removed


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_factories_of_lazy_models_load(wrap):
    torch.manual_seed(0)
    net = Lazy()
    net(X)
    result = hp.prune(net.eval(), X[:1], BATCHES, budget=HALF, method="magnitude")
    again = hp.load(result.save(tempfile.mkdtemp()), lambda: wrap(Lazy()))
    assert torch.equal(again(X), result.model(X))


class Leaving(Net):
    """A forward that counts its calls and keeps its activations."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.kept = []

    def forward(self, x):
        self.seen += 1
        self.last = {"x": 2 * self.f.weight}
        self.kept.append(self.last["x"].sum())
        return super().forward(x)


def test_what_a_forward_leaves_does_not_reach_the_model():
    torch.manual_seed(0)
    net = Leaving()
    hp.prune(net, X[:1], BATCHES, budget=HALF)
    hp.saliency(net, hp.find_groups(net, X[:1]), BATCHES, "joint")
    hp.evaluate(net, BATCHES)
    hp.cost(net, X[:1])
    assert not net.seen
    assert not net.kept
    assert not hasattr(net, "last")


def test_activations_that_a_forward_left_do_not_stop_surgery():
    torch.manual_seed(0)
    net = Leaving()
    net(X).sum().backward()
    assert hp.prune(net, X[:1], BATCHES, budget=HALF, method="magnitude").plan.num_removed
    hp.finetune(net, BATCHES, BATCHES, config=hp.FinetuneConfig(epochs=1))
    assert len(net.kept) == 1


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_models_and_data_made_without_gradients(mode):
    with mode():
        torch.manual_seed(0)
        net, x = Net(), X.clone()
        batches = [(x, torch.arange(16) % 4)]
        for method in ("joint", "taylor", "hap(estimator=hutchinson,num_probes=2)"):
            result = hp.prune(net, x[:1], batches, budget=HALF, method=method)
        trained = hp.finetune(result.model, batches, batches, config=hp.FinetuneConfig(epochs=1)).model
        again = hp.load(result.save(tempfile.mkdtemp()), Net)
    for model in (result.model, trained, again):
        model(X).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_context_restores_the_mode():
    with torch.inference_mode(), received(Net()) as net:
        assert not torch.is_inference_mode_enabled()
        assert isinstance(net, Net)


def test_several_threads_prune_at_once():
    torch.manual_seed(0)
    net, outcomes = Net(), collections.Counter()

    def work():
        plan = hp.prune(net, X[:1], BATCHES, budget=HALF, method="hap").plan
        outcomes[str(dict(plan.removed))] += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(outcomes.values()) == [3]
