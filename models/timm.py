"""Any network of timm, by timm's own name for it. timm is imported where it is used: few runs need it."""

import difflib

import torch
from torch import Tensor, nn

from utils.data.table import Dataset
from utils.run.errors import UserError


def check(architecture: str) -> None:
    """UserError, with the nearest names, unless timm has a network of this name (a pretrained tag is allowed)."""
    import timm

    base, _, tag = architecture.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=4)
        raise UserError(f"timm has no network {base!r}" + (f"; near it: {' '.join(near)}" if near else ""))
    if tag and architecture not in timm.list_pretrained(f"{base}.*"):
        raise UserError(f"timm has no weights {tag!r} of {base}; it has: {' '.join(timm.list_pretrained(f'{base}.*'))}")


def build(architecture: str, dataset: Dataset, pretrained: bool = False) -> nn.Module:
    """The network for the dataset's image size and classes, in training mode; random unless `pretrained`.

    UserError if it cannot be built for this size, or gives no logits for an image of it.
    """
    import timm

    config = timm.models.get_pretrained_cfg(architecture)
    fits = config is None or not config.fixed_input_size or config.input_size[1:] == (dataset.size, dataset.size)
    settings = {} if fits else {"img_size": dataset.size}
    try:
        network = timm.create_model(architecture, pretrained, num_classes=dataset.num_classes, **settings).eval()
        with torch.no_grad():
            logits = network(torch.zeros(1, 3, dataset.size, dataset.size))
        if logits.shape != (1, dataset.num_classes):
            raise ValueError(f"its output is {tuple(logits.shape)}, not one logit a class")
    except Exception as error:  # what an unsuitable size raises differs from network to network
        raise UserError(
            f"timm:{architecture} cannot be used with the {dataset.size}-pixel images of {dataset.name} "
            f"({error}): take another network"
        ) from error
    return network.train()


def build_pretrained(architecture: str, dataset: Dataset) -> nn.Module:
    """The network with timm's own weights for ImageNet-1k, taking images normalised as `dataset` says.

    UserError where timm has no such weights, where their classes are others, or where the download fails.
    """
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    config = timm.models.get_pretrained_cfg(architecture)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for {architecture}: name another teacher")
    if config.num_classes != dataset.num_classes:
        raise UserError(
            f"timm's weights for {architecture} are of {config.num_classes} classes, but {dataset.name} has "
            f"{dataset.num_classes}: name other weights, as in timm:<network>.<tag>"
        )
    build(architecture, dataset)  # so that what fails below is the download
    try:
        network = build(architecture, dataset, pretrained=True)
    except UserError as error:
        raise UserError(
            f"could not load timm's weights for {architecture} ({error.__cause__}): they belong into the cache folder "
            f"{HF_HUB_CACHE} or {torch.hub.get_dir()}"
        ) from error
    if (config.mean, config.std) == (dataset.mean, dataset.std):
        return network
    return _Renormalised(network, dataset, config.mean, config.std)


class _Renormalised(nn.Module):
    """A network trained with another mean and std than the dataset's table has; it takes images normalised as there."""

    def __init__(self, network: nn.Module, dataset: Dataset, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        our_mean, our_std, mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in (dataset.mean, dataset.std, mean, std)
        )
        self.network = network
        self.register_buffer("scale", our_std / std)
        self.register_buffer("shift", (our_mean - mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.scale + self.shift)
