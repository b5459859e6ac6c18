"""The cost of a model: counted on the model, and as an exact function of the units removed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessprune.costs.cache import cache_bytes
from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.products import Product, record_products, size_changes
from hessprune.foundation.arrival import arrived
from hessprune.foundation.formatting import bytes_text, count_text, html_table
from hessprune.structure.belonging import check_groups
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of one forward on the example inputs, and the size of the model.

    One multiply-add is one MAC. Convolutions and matrix products are counted, element-wise operations are not.

    Example:
        >>> import hessprune as hp
        >>> print(hp.Cost(macs=12_400_000, params=1_200_000, bytes=4_800_000))
        12.4 M MACs, 1.2 M parameters, 4.8 MB
    """

    macs: int
    """Multiply–accumulate operations of one forward on the whole example batch."""
    params: int
    """Number of parameters, shared ones once."""
    bytes: int
    """Size of parameters and buffers, in bytes."""
    kv_cache: int = field(default=0, repr=False)
    """Bytes by which a decoder's cache grows with each token of one sequence: the keys and the values of all layers,
    in the type of the weights; of an encoder beside it, those for each of its tokens, too. 0 without a cache."""

    def __str__(self) -> str:
        """Return for example `12.4 M MACs, 1.2 M parameters, 4.8 MB`."""
        return ", ".join([
            f"{count_text(self.macs)} MACs",
            f"{count_text(self.params)} parameters",
            bytes_text(self.bytes),
            *([f"{bytes_text(self.kv_cache)} of cache per token"] if self.kv_cache else []),
        ])

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return html_table(
            ["MACs", "parameters", "size"], [[count_text(self.macs), count_text(self.params), bytes_text(self.bytes)]]
        )


@torch.inference_mode(False)
def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count MACs, parameters and bytes of a model.

    The forward runs on the meta device (no arithmetic) in evaluation mode; the model is left untouched.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple, or a dict. MACs are counted for this whole batch: pass a batch of 1 for MACs
            per sample.

    Returns:
        The counted cost.

    Raises:
        DataError: The inputs do not fit the model.

    Example:
        >>> import torch, hessprune as hp
        >>> hp.cost(torch.nn.Linear(10, 5), torch.zeros(1, 10))
        Cost(macs=50, params=55, bytes=220)
    """
    return CostModel(arrived(model), example_inputs).dense


class CostModel:
    """The cost as an exact function of the number of units that each group loses.

    Nearly every counted product reads one weight and costs `(positions) × numel(weight)` MACs, for any kernel and any
    number of convolution groups. So MACs, like parameters, are a sum over tensors of a coefficient times a product of
    axis sizes, and every axis size falls linearly with the units removed. A forward without one unit of every group
    shows the few exceptions: products of two activations, or along other axes than channels. Their cost is computed
    from their own axis sizes, which fall linearly too. The predicted cost is therefore the counted cost.

    Args:
        model: The dense model; it is not changed.
        example_inputs: The inputs for which MACs are counted; shapes only.
        groups: From `find_groups`.
        stand_ins: Layers that can hold stand-ins, each with its rank (None: 1×1 filters).
        latency: The table that predicts milliseconds, for a budget of time.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        groups: Sequence[Group] = (),
        stand_ins: Mapping[str, int | None] | None = None,
        latency: LatencyTable | None = None,
    ) -> None:
        groups = list(check_groups(model, groups))
        self.latency = latency
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._groups = {group.name: number for number, group in enumerate(groups)}
        self._units = {group.name: group.num_units for group in groups}
        self._num_units = sum(self._units.values())
        self._set_axes(state, groups)
        products = record_products(model, example_inputs)
        irregular = self._irregular(products, record_products(model, example_inputs, groups), list(state))
        self._irregular_products = [products[number] for number in irregular]
        self._changes = size_changes(model, example_inputs, groups, products, irregular)
        sizes = [product.sizes for product in self._irregular_products]
        self._dense_sizes, self._num_sizes = np.concatenate([np.zeros(0), *sizes]), list(map(len, sizes))
        parts = np.split(self._changes, np.cumsum(self._num_sizes)[:-1], 1)
        self._changing = [np.flatnonzero(part.any(1)) for part in parts][: len(sizes)]
        self._known_macs: list[dict[tuple[float, ...], int]] = [{} for _ in sizes]
        self._cache, self._cache_per_unit = cache_bytes(model, example_inputs, groups)
        macs = dict.fromkeys(state, 0)
        for number in {*range(len(products))} - {*irregular}:
            macs[products[number].owner] += products[number].macs()
        self._weights = {
            "macs": np.array(list(macs.values())) / np.maximum(self._numel(np.zeros(len(groups))), 1),
            "params": np.array([isinstance(tensor, nn.Parameter) for tensor in state.values()], dtype=float),
            "bytes": np.array([tensor.element_size() for tensor in state.values()], dtype=float),
        }
        rows = {name: number for number, name in enumerate(state)}
        self._stand_ins = np.array([rows[f"{layer}.weight"] for layer in stand_ins or ()], dtype=int)
        self._ranks = np.array([rank or 0 for rank in (stand_ins or {}).values()], dtype=float)
        self.dense = self({})

    def _irregular(self, products: list[Product], fewer: list[Product], names: list[str]) -> list[int]:
        """Return the numbers of products whose cost does not fall with their weight, down to one unit of each group."""
        one = np.array([float(units > 1) for units in self._units.values()])
        shares = self._numel(one) / np.maximum(self._numel(0 * one), 1)
        share = dict(zip(names, shares, strict=True))
        pairs = enumerate(zip(products, fewer, strict=True))
        return [
            number
            for number, (p, q) in pairs
            if p.owner not in share or p.operator == "einsum" or round(p.macs() * share[p.owner]) != q.macs()
        ]

    def _numel(self, counts: np.ndarray) -> np.ndarray:
        """Return the number of elements of each tensor after `counts` units of each group are gone."""
        return (self._sizes - np.tensordot(counts, self._per_unit, axes=1)).prod(1)

    def _irregular_macs(self, counts: np.ndarray) -> int:
        sizes, start, total = self._dense_sizes - counts @ self._changes, 0, 0
        for place, number in enumerate(self._num_sizes):
            total += self._macs_of(place, sizes[start : start + number])
            start += number
        return total

    def _macs_of(self, place: int, sizes: np.ndarray) -> int:
        """Return the MACs of an irregular product; a plan asks for the same sizes thousands of times."""
        known, key = self._known_macs[place], tuple(sizes.tolist())
        if key not in known:
            known[key] = self._irregular_products[place].macs(key)
        return known[key]

    def _irregular_saved(self, counts: np.ndarray) -> np.ndarray:
        """Return the MACs that one more unit of each group saves in the irregular products."""
        saved = np.zeros(len(counts))
        if not self._irregular_products:
            return saved
        sizes = self._dense_sizes - counts @ self._changes
        start = 0
        for place, changing in enumerate(self._changing):
            axes = slice(start, start + self._num_sizes[place])
            now = self._macs_of(place, sizes[axes]) if len(changing) else 0
            for number in changing:
                saved[number] += now - self._macs_of(place, sizes[axes] - self._changes[number, axes])
            start = axes.stop
        return saved

    def _set_axes(self, state: Mapping[str, Tensor], groups: list[Group]) -> None:
        """Set the axis sizes `(T, A)` of all tensors, and the positions that one unit takes on them, `(G, T, A)`."""
        rows = {name: number for number, name in enumerate(state)}
        width = max([8, *(tensor.dim() for tensor in state.values())])
        self._sizes = np.ones((len(state), width))
        for name, tensor in state.items():
            self._sizes[rows[name], : tensor.dim()] = tensor.shape
        self._per_unit = np.zeros((len(groups), len(state), width))
        for number, group in enumerate(groups):
            for piece in group.slices:
                self._per_unit[number, rows[piece.param], piece.dim] += len(piece.index[0])
        self._touching, self._touched = np.nonzero(self._per_unit.any(2))
        self._less = self._per_unit[self._touching, self._touched]

    def _stand_in_numel(self, counts: np.ndarray, implanted: np.ndarray) -> np.ndarray:
        """Return the change in elements of each tensor where implanted units hold stand-ins in the place of filters.

        A full filter has `I·k` weights; a 1×1 filter has `I`, and filters of rank `r` have `r` each and share `r·I·k`.
        """
        sizes = (self._sizes - np.tensordot(counts, self._per_unit, axes=1))[self._stand_ins]
        units = implanted @ self._per_unit[:, self._stand_ins, 0]
        inputs, full = sizes[:, 1], sizes[:, 1:].prod(1)
        small = np.where(self._ranks > 0, self._ranks * (units + full * (units > 0)), units * inputs)
        change = np.zeros(len(self._sizes))
        change[self._stand_ins] = small - units * full
        return change

    def __call__(self, num_removed: Mapping[str, int], num_implanted: Mapping[str, int] | None = None) -> Cost:
        """Return the cost of the model that is left.

        Args:
            num_removed: Removed units by group name; 0 where a group is absent.
            num_implanted: Further units by group name, each with a stand-in in the layers of `stand_ins`.
        """
        counts = self._counts(num_removed)
        numel = self._numel(counts) + self._stand_in_numel(counts, self._counts(num_implanted or {}))
        totals = {quantity: round(float(weights @ numel)) for quantity, weights in self._weights.items()}
        macs = totals["macs"] + self._irregular_macs(counts)
        cache = self._cache - round(float(counts @ self._cache_per_unit))
        return Cost(macs=macs, params=totals["params"], bytes=totals["bytes"], kv_cache=cache)

    def spent(
        self,
        quantity: str,
        num_removed: Mapping[str, int] | None = None,
        num_implanted: Mapping[str, int] | None = None,
    ) -> float:
        """Return one quantity of the model that is left: of its cost, its milliseconds, or its number of units."""
        if quantity == "latency_ms":
            return self._table().ms(num_removed)
        if quantity == "units":
            return self._num_units - sum((num_removed or {}).values())
        return getattr(self(num_removed or {}, num_implanted), quantity)

    def saved_next(self, quantity: str, num_removed: Mapping[str, int] | None = None) -> dict[str, float]:
        """Return by group name the saving of one more unit in a quantity, after `num_removed` units are gone."""
        if quantity == "units":
            return dict.fromkeys(self._groups, 1.0)
        if quantity == "kv_cache":
            return {name: float(self._cache_per_unit[number]) for name, number in self._groups.items()}
        counts = self._counts(num_removed or {})
        sizes = (self._sizes - np.tensordot(counts, self._per_unit, axes=1))[self._touched]
        change = sizes.prod(1) - np.clip(sizes - self._less, 0, None).prod(1)
        weighted = change * self._weights[quantity][self._touched]
        saved = np.bincount(self._touching, weighted, minlength=len(counts))
        if quantity == "macs":
            saved = saved + self._irregular_saved(counts)
        return {name: float(saved[number]) for name, number in self._groups.items()}

    def num_leaving(self, quantity: str, group: str, num_ranked: int, multiple: int) -> int:
        """Return how many of `num_ranked` units of a group go, so that the kept ones come in multiples of `multiple`.

        For milliseconds, a group also stops only at widths that measure as faster.
        """
        if quantity == "latency_ms":
            return self._table().rounded(group, num_ranked, multiple)
        units = self._units[group]
        return max(units - math.ceil((units - num_ranked) / multiple) * multiple, 0)

    def _table(self) -> LatencyTable:
        assert self.latency is not None, "a budget of time is planned with a latency table"
        return self.latency

    def _counts(self, num_removed: Mapping[str, int]) -> np.ndarray:
        counts = np.zeros(len(self._groups))
        for name, number in num_removed.items():
            counts[self._groups[name]] = number
        return counts
