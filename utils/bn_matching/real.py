"""What a teacher's layers see of real images: the targets of probes whose layers keep no statistics themselves."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.bn_matching.matching import in_turn, running_order
from utils.bn_matching.probes import Probe


class Sums(NamedTuple):
    """Sums over real images of a layer's vectors, each on the CPU.

    whole: a batch's statistics times its images, so that the mean is that of batches (G-VBSM); by_class: those of
    single images (C x length each), whose variance is that within an image (EDC); empty where they are not asked for.
    """

    whole: list[Tensor]
    by_class: list[Tensor]


class RealObserver:
    """Adds up what a probe measures of a teacher's layers, by their names, over batches of real images.

    teacher: in eval mode; size: side of the images; classes: how many, or 0 where no sums by class are asked for.
    """

    def __init__(self, teacher: nn.Module, probe: Probe, size: int, classes: int) -> None:
        self.teacher, self.probe, self.classes = teacher, probe, classes
        self.layers = {name: teacher.get_submodule(name) for name in running_order(teacher, probe, size)}
        self.sums: dict[str, Sums] = {}
        self.counts = torch.zeros(classes)
        self.images = 0

    @torch.no_grad()
    def add(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """batches: normalised images (n x 3 x S x S) and their labels (n), on the teacher's device."""
        for images, labels in batches:
            labels = labels.cpu()
            hooks = [
                layer.register_forward_pre_hook(partial(self._add_layer, name=name, labels=labels))
                for name, layer in self.layers.items()
            ]
            self.teacher(images)
            for hook in hooks:
                hook.remove()
            self.counts += torch.bincount(labels, minlength=self.classes)[: self.classes]
            self.images += len(images)

    def _add_layer(self, layer: nn.Module, inputs: tuple[Tensor, ...], name: str, labels: Tensor) -> None:
        activations = inputs[0]
        whole = [len(activations) * vector.cpu() for vector in self.probe.measure(layer, activations)]
        single: Sequence[Tensor] = ()
        if self.classes:  # all images of the batch at once, each as a batch of its own
            single = torch.vmap(lambda image: tuple(self.probe.measure(layer, image[None])))(activations)
        if name not in self.sums:
            by_class = [torch.zeros(self.classes, vectors.shape[1]) for vectors in single]
            self.sums[name] = Sums([torch.zeros_like(vector) for vector in whole], by_class)
        for total, vector in zip(self.sums[name].whole, whole, strict=True):
            total += vector
        for total, vectors in zip(self.sums[name].by_class, single, strict=True):
            total.index_add_(0, labels, vectors.cpu())

    def whole(self) -> Mapping[str, list[Tensor]]:
        """The vectors of every layer over all images."""
        return {name: [total / self.images for total in sums.whole] for name, sums in self.sums.items()}

    def by_class(self) -> Tensor:
        """The vectors of each class, joined as `MatchedTeacher` joins its targets: C x L."""
        joined = torch.cat(in_turn([sums.by_class for sums in self.sums.values()]), dim=1)
        return joined / self.counts[:, None]

    def state(self) -> dict[str, object]:
        """What `restore` goes on from."""
        sums = {name: list(each) for name, each in self.sums.items()}
        return {"counts": self.counts, "images": self.images, "sums": sums}

    def restore(self, state: Mapping[str, object]) -> None:
        self.counts, self.images = state["counts"], state["images"]
        self.sums = {name: Sums(*each) for name, each in state["sums"].items()}
