"""Parameters and buffers of a module: replaced under every alias, with the size attributes of their layers."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def replace_tensors(model: nn.Module, new: Mapping[str, Tensor]) -> None:
    """Put new tensors in the place of parameters and buffers, under every alias, and update module attributes.

    What was laid out as channels-last stays so.
    """
    state = dict(named_tensors(model))
    by_identity = {id(state[name]): value for name, value in new.items()}
    for module in model.modules():
        changed = False
        for table in (module._parameters, module._buffers):
            for attribute, old in table.items():
                if old is not None and id(old) in by_identity:
                    table[attribute] = _like(old, by_identity[id(old)])  # type: ignore[assignment]
                    by_identity[id(old)] = table[attribute]  # type: ignore[assignment]
                    changed = True
        if changed:
            sync_attributes(module)


def sync_attributes(module: nn.Module) -> None:
    """Make the size attributes of torch's own layers agree with their tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        rows, columns = module.weight.shape[:2]
        inside, outside = (rows, columns * module.groups) if module.transposed else (columns * module.groups, rows)
        module.in_channels, module.out_channels = inside, outside
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = weight if weight is not None else module.running_mean
        module.num_features = module.num_features if held is None else len(held)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = len(weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.MultiheadAttention):
        packed = module.in_proj_weight
        inputs = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if packed is None else (packed,) * 3
        module.embed_dim, module.kdim, module.vdim = (each.shape[1] for each in inputs)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters, then all buffers, each under every name it has."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def laid_out_as(old: Tensor, new: Tensor) -> Tensor:
    """Return the new tensor in the memory format of the old one: channels-last or contiguous."""
    form = _FORMATS.get(old.dim())
    if form is None or old.stride() not in (_strides(old, form), _strides(old)) or _strides(old, form) == _strides(old):
        return new
    wanted = form if old.stride() == _strides(old, form) else torch.contiguous_format
    if new.dim() != old.dim() or new.stride() == _strides(new, wanted):
        return new
    return torch.empty_like(new, memory_format=wanted, requires_grad=False).copy_(new.detach())


_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _strides(tensor: Tensor, form: torch.memory_format = torch.contiguous_format) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta", memory_format=form).stride()


def _like(old: Tensor, new: Tensor) -> Tensor:
    new = laid_out_as(old, new)
    if isinstance(new, nn.Parameter) or not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=old.requires_grad)
