"""The gain of a new unit, against the definition written out row by row."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.bottlenecks.growth import RIDGE, growth
from hessprune.foundation.batches import Rereadable
from hessprune.methods.text import as_method
from hessprune.pruning.task import Task


def gains(model: nn.Module, batches: list, loss_fn=F.cross_entropy) -> dict[str, float]:
    task = Task(
        model=model,
        example_inputs=batches[0][0][:1],
        batches=Rereadable.of(batches, model),
        budget=hp.Budget(params=0.5),
        method=as_method("magnitude"),
        loss_fn=loss_fn,
    )
    return growth(task.ready())


def written_out(a: Tensor, h: Tensor, wanted: Tensor) -> float:
    """`λ₁²` of `S^{−1/2} N` for rows of candidates, inputs and wanted updates."""
    ridge = torch.eye(h.shape[1]).double() * RIDGE * (h.T @ h).diagonal().mean()
    update = torch.linalg.solve(h.T @ h + ridge, h.T @ wanted)
    rest = wanted - h @ update
    s, n = a.T @ a / len(a), a.T @ rest / len(a)
    s = s + torch.eye(len(s)).double() * RIDGE * s.diagonal().mean()
    values, vectors = torch.linalg.eigh(s)
    return float(torch.linalg.svdvals(vectors @ torch.diag(values**-0.5) @ vectors.T @ n)[0]) ** 2


def test_linear_layers_follow_the_definition() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(40, 5).double(), torch.randint(0, 3, (40,))
    h = net[1](net[0](x)).detach()
    z = net[2](h).detach().requires_grad_()
    wanted = -torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), z)[0]
    for batches in ([(x, y)], [(x[:16], y[:16]), (x[16:], y[16:])]):
        assert gains(net, batches)["0"] == pytest.approx(written_out(x, h, wanted), rel=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_follow_the_definition(stride: int) -> None:
    """A new channel's map is the candidates' map; its reader sees it at every place of the kernel."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1, stride=stride)
    net = nn.Sequential(first, nn.Tanh(), second, nn.Flatten(), nn.Linear(2 * (4 // stride) ** 2, 3)).double()
    x, y = torch.randn(12, 2, 4, 4).double(), torch.randint(0, 3, (12,))
    h = net[1](first(x)).detach()
    z = second(h).detach().requires_grad_()
    wanted = -torch.autograd.grad(F.cross_entropy(net[4](net[3](z)), y, reduction="sum"), z)[0]

    def rows(maps: Tensor, step: int = 1) -> Tensor:
        return F.unfold(maps, 3, padding=1, stride=step).transpose(1, 2).reshape(-1, maps.shape[1] * 9)

    flat = wanted.flatten(2).transpose(1, 2).reshape(-1, 2)
    inputs = rows(h, stride)
    ridge = torch.eye(27).double() * RIDGE * (inputs.T @ inputs).diagonal().mean()
    rest = flat - inputs @ torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ flat)
    candidates = rows(x)  # at every position of the new channel's map
    maps = candidates.reshape(12, 16, 18).transpose(1, 2).reshape(12, 18, 4, 4)
    seen = F.unfold(maps, 3, padding=1, stride=stride).transpose(1, 2).reshape(-1, 18, 9)
    cross = torch.einsum("nak,no->aok", seen, rest).reshape(18, -1) / len(rest)
    s = candidates.T @ candidates / len(candidates)
    s = s + torch.eye(18).double() * RIDGE * s.diagonal().mean()
    values, vectors = torch.linalg.eigh(s)
    expected = float(torch.linalg.svdvals(vectors @ torch.diag(values**-0.5) @ vectors.T @ cross)[0]) ** 2
    assert gains(net, [(x, y)])["0"] == pytest.approx(expected, rel=1e-5)


class Modulated(nn.Module):
    """A convolution whose channels a linear layer scales, in front of it in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.conv = nn.Linear(5, 6), nn.Conv2d(3, 6, 3)
        self.next, self.head = nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        scale = self.scale(condition)[:, :, None, None]
        self.seen = self.next((self.conv(images) * scale).relu()).relu()
        return self.head(self.seen.mean((2, 3)))


def test_a_layer_of_another_rank_may_produce_the_units_and_the_model_keeps_nothing() -> None:
    torch.manual_seed(0)
    model = Modulated()
    batches = [({"images": torch.randn(8, 3, 9, 9), "condition": torch.randn(8, 5)}, torch.arange(8) % 4)] * 2
    found = hp.find_bottlenecks(model, batches[0][0], batches, method="magnitude", levels=(0.3,))
    assert {item.group: item.gain is not None for item in found} == {"scale": True, "next": True}
    assert not hasattr(model, "seen")


@pytest.mark.parametrize(("stride", "padding", "further", "dilation"), [(1, 1, 0, 1), (2, 1, 1, 1), (3, 4, 2, 2)])
def test_transposed_convolutions_follow_the_definition(stride: int, padding: int, further: int, dilation: int) -> None:
    """Their kernel reads maps with zeros between, and a plain network over such maps has the same gain."""
    torch.manual_seed(0)
    first = nn.Conv2d(2, 3, 3, padding=1)
    options = {"padding": padding, "output_padding": further, "dilation": dilation, "stride": stride}
    second, third = nn.ConvTranspose2d(3, 4, 3, **options), nn.Conv2d(4, 2, 3)
    net = nn.Sequential(
        first, nn.Tanh(), second, nn.Tanh(), third, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    side = dilation * 2 - padding

    class Spread(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = x.new_zeros(*x.shape[:2], (x.shape[2] - 1) * stride + 1, (x.shape[3] - 1) * stride + 1)
            wide[:, :, ::stride, ::stride] = x
            return F.pad(wide, [side, side + further] * 2)

    plain = nn.Conv2d(3, 4, 3, dilation=dilation)
    with torch.no_grad():
        plain.weight.copy_(second.weight.transpose(0, 1).flip(2, 3))
        plain.bias.copy_(second.bias)
    same = nn.Sequential(first, nn.Tanh(), Spread(), plain, *net[3:]).double()
    net = net.double()
    x, y = torch.randn(12, 2, 5, 5).double(), torch.randint(0, 3, (12,))
    torch.testing.assert_close(same(x), net(x))
    found, expected = gains(net, [(x[:5], y[:5]), (x[5:], y[5:])]), gains(same, [(x[:5], y[:5]), (x[5:], y[5:])])
    assert found.keys() == {"0", "2", "4"}
    assert found["2"] == pytest.approx(expected["3"], rel=1e-6)  # as a producer
    h = net[1](first(x)).detach()
    z = second(h).detach().requires_grad_()
    wanted = -torch.autograd.grad(F.cross_entropy(net[3:](z), y, reduction="sum"), z)[0]

    def columns(channels: int, maps: Tensor) -> Tensor:
        """Return `(N, K, channels, positions)`: what each weight of one output reads, by the layer itself."""
        reader = nn.ConvTranspose2d(1, 1, 3, bias=False, **options).double()
        rows = []
        for place in torch.eye(9).double():
            reader.weight.data = place.view(1, 1, 3, 3)
            rows.append(reader(maps.flatten(0, 1)[:, None]).detach().view(len(maps), channels, -1))
        return torch.stack(rows, 2)

    inputs = columns(3, h).flatten(1, 2).transpose(1, 2).reshape(-1, 27)
    flat = wanted.flatten(2).transpose(1, 2).reshape(-1, 4)
    ridge = torch.eye(27).double() * RIDGE * (inputs.T @ inputs).diagonal().mean()
    rest = flat - inputs @ torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ flat)
    candidates = F.unfold(x, 3, padding=1)
    seen = columns(18, candidates.view(12, 18, 5, 5))
    cross = torch.einsum("nakp,npo->aok", seen, rest.view(12, -1, 4)).reshape(18, -1) / len(rest)
    a = candidates.transpose(1, 2).reshape(-1, 18)
    s = a.T @ a / len(a)
    s = s + torch.eye(18).double() * RIDGE * s.diagonal().mean()
    values, vectors = torch.linalg.eigh(s)
    value = float(torch.linalg.svdvals(vectors @ torch.diag(values**-0.5) @ vectors.T @ cross)[0]) ** 2
    assert found["0"] == pytest.approx(value, rel=1e-5)  # as a reader


class Products(nn.Module):
    """Two layers whose weights stand on the right of a product, as GPT-2's do."""

    def __init__(self, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.up, self.down = (
            nn.Parameter(up.weight.detach().t().clone()),
            nn.Parameter(down.weight.detach().t().clone()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.up).tanh() @ self.down


def test_weights_on_the_right_of_a_product_have_the_gain_of_linear_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    batches = [(torch.randn(40, 5).double(), torch.randint(0, 3, (40,)))]
    (found,), (expected,) = gains(Products(net[0], net[2]), batches).values(), gains(net, batches).values()
    assert found == pytest.approx(expected, rel=1e-9)


def test_no_gain_is_stated_where_no_layer_is_seen_to_read() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.table = nn.Linear(6, 16), nn.Parameter(torch.randn(4, 16))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.first(x).relu(), 2 * self.table)

    batches = [(torch.randn(8, 6), torch.arange(8) % 4)]
    found = hp.find_bottlenecks(Doubled(), batches[0][0], batches, method="magnitude", levels=(0.3,))
    assert [item.gain for item in found] == [None]


def test_targets_that_give_no_gradient_are_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(12, 4)

    def gains(batches: list[object]) -> list[float | None]:
        found = hp.find_bottlenecks(net, x[:1], batches, levels=(0.4,), draws=1, method="magnitude")
        return [item.gain for item in found]

    assert gains([x]) == [None]
    assert "left out" not in caplog.text
    assert gains([(x, torch.randn(12, 2))]) == [None]
    assert "the gain of new units is left out: `batches` must hold labels" in caplog.text
