import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hessprune.costs.model import CostModel, cost
from hessprune.costs.products import record_products
from hessprune.errors import DataError
from hessprune.structure.find import find_groups
from tests.cases import AWKWARD, Plain, image, make, paper_model


@pytest.mark.parametrize("case", AWKWARD, ids=lambda case: case.__name__)
def test_macs_agree_with_torchs_own_counter(case: type[nn.Module]) -> None:
    model, x = make(case), image()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert cost(model, x).macs == counter.get_total_flops() // 2


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_batchnorm_is_dry_in_every_form(options: dict[str, bool], layout: torch.memory_format) -> None:
    class Needy(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * float(x.sum())  # needs real numbers, so nothing is dry

    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.Conv2d(4, 5, 2, stride=2)]
    x = torch.ones(2, 3, 7, 6).to(memory_format=layout)
    assert record_products(nn.Sequential(*layers), x) == record_products(Needy(*layers), x)


def test_batchnorm_of_the_wrong_width_still_fails() -> None:
    with pytest.raises(DataError, match=r"in module '1': .*should contain 4 elements not 8"):
        cost(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8)), torch.zeros(1, 3, 7, 7))


@pytest.mark.parametrize(("inputs", "form"), [(torch.zeros(1, 5), r"float32 \(1, 5\)"), (None, "NoneType")])
def test_inputs_that_do_not_fit_are_named(inputs: torch.Tensor | None, form: str) -> None:
    with pytest.raises(DataError, match=rf"inputs in `example_inputs` must fit the model, got {form}, in module '0'"):
        cost(nn.Sequential(nn.Linear(6, 3)), inputs)


def test_published_costs_of_resnet56() -> None:
    model, x = paper_model("resnet56")
    counted = cost(model, x)
    assert counted.macs == 125_485_696  # 0.125 G, as in He et al. (2016) and in every table since
    assert counted.params == 853_018


def test_parameters_and_bytes_count_shared_tensors_once() -> None:
    shared = nn.Linear(4, 4, bias=False)
    counted = cost(nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm1d(4)), torch.zeros(2, 4))
    assert (counted.params, counted.macs) == (24, 64)
    assert counted.bytes == 4 * (16 + 4 * 4) + 8  # weights, affine terms and statistics, one int64 counter


def test_attention_products_are_counted_and_belong_to_no_weight() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    products = record_products(layer, torch.zeros(1, 10, 16))

    def macs(owner: str) -> int:
        return sum(product.macs() for product in products if product.owner == owner)

    assert macs("") == 2 * 10 * 10 * 16
    assert macs("self_attn.in_proj_weight") == 10 * 16 * 48


def test_models_that_need_real_numbers_are_counted_on_their_device() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * float(x.sum())

    assert cost(Indexed(), torch.ones(1, 3)).macs == 6


def test_saving_per_unit_is_the_difference_of_costs() -> None:
    model, x = make(Plain), image()
    groups = find_groups(model, x)
    costs = CostModel(model, x, groups)
    saved = costs.saved_next("macs")
    assert saved["body.2.0"] == 2 * (16 * 12 * 9 + 4)  # a 4×4 map, 12 inputs, 3×3 kernel, and 4 rows of the head


def test_printing() -> None:
    large = cost(nn.Linear(1000, 1240), torch.zeros(10, 1000))
    assert str(large) == "12.4 M MACs, 1.2 M parameters, 5 MB"
    assert str(cost(nn.Linear(10, 5), torch.zeros(1, 10))) == "50 MACs, 55 parameters, 220 B"
    assert "<td>12.4 M</td>" in large._repr_html_()
