"""How the logits of an epoch lie in its file: a codec is a pair of functions between them and the file's tensors.

A codec's builder takes the number of classes, the type of the logits ("float16" or "float32") and `top_k`.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.seams import CODECS

LOGITS_TYPES = {"float16": "F16", "float32": "F32"}
# What a logit that was not kept is read as: far enough below any other for a probability of exactly 0 at every
# temperature up to 10^6, and finite there from 10^-12 up, so that 0 times its logarithm is 0.
LEFT_OUT = -1e9


class Packing(NamedTuple):
    """How a store keeps its epochs. codec: of the logits; top_k: of the codec of that name, else 0; store_draws:
    whether an epoch's file has its draws, too, or these are drawn again from the seeds in the manifest."""

    codec: str = "dense"
    top_k: int = 0
    store_draws: bool = True

    def as_record(self) -> dict[str, object]:
        """By name; nothing where it is that of stores of format 1 and 2."""
        return {} if self == PLAIN else self._asdict()

    def codec_for(self, num_classes: int, logits_type: str) -> "Codec":
        return CODECS[self.codec](num_classes, logits_type, self.top_k)


PLAIN = Packing()


class Codec(Protocol):
    """is_whole: whether all logits come back."""

    is_whole: bool

    def expected(self, views: int) -> dict[str, tuple[str, list[int]]]:
        """Type and shape of each tensor for so many views, by name, as safetensors calls them; the views come first."""

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """The tensors of logits (N x C, on the CPU), by name."""

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits (N x C) of such tensors, or of the same rows of each."""

    def problem(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What is wrong with the values of tensors before they are decoded, in words; None where nothing is."""


@CODECS.add("dense")
class Dense:
    """All logits as they are."""

    is_whole = True

    def __init__(self, num_classes: int, logits_type: str, top_k: int) -> None:
        self.num_classes, self.type = num_classes, LOGITS_TYPES[logits_type]

    def expected(self, views: int) -> dict[str, tuple[str, list[int]]]:
        return {"logits": (self.type, [views, self.num_classes])}

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        return {"logits": logits.contiguous()}

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["logits"]

    def problem(self, tensors: Mapping[str, Tensor]) -> str | None:
        return None


@CODECS.add("top_k")
class TopK:
    """The k largest logits of each view and their classes; the softmax is over these alone (LPQLD's MR-k)."""

    is_whole = False

    def __init__(self, num_classes: int, logits_type: str, top_k: int) -> None:
        self.num_classes, self.kept, self.type = num_classes, min(top_k, num_classes), LOGITS_TYPES[logits_type]
        # of the largest class: the smallest type that has it
        self.classes_type = next(
            kind for kind in (torch.uint8, torch.int16, torch.int32) if num_classes - 1 <= torch.iinfo(kind).max
        )

    def expected(self, views: int) -> dict[str, tuple[str, list[int]]]:
        word = {torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32"}[self.classes_type]
        return {"top_logits": (self.type, [views, self.kept]), "top_classes": (word, [views, self.kept])}

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        largest, classes = logits.float().topk(self.kept, dim=1)
        return {"top_logits": largest.to(logits.dtype), "top_classes": classes.to(self.classes_type)}

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Float32, since what is left out is beyond the range of float16."""
        largest, classes = tensors["top_logits"].float(), tensors["top_classes"].long()
        return torch.full((len(largest), self.num_classes), LEFT_OUT).scatter_(1, classes, largest)

    def problem(self, tensors: Mapping[str, Tensor]) -> str | None:
        classes = tensors["top_classes"].long().sort(dim=1).values
        if classes.min() < 0 or classes.max() >= self.num_classes or (classes.diff(dim=1) == 0).any():
            return "a class of a soft label is none, or there twice"
        return None


@CODECS.add("four_bits")
class FourBits:
    """All logits, each view's on 16 even steps from its lowest to its highest: off by a thirtieth of that range at
    most, half a byte each. Our own."""

    is_whole, steps = True, 15

    def __init__(self, num_classes: int, logits_type: str, top_k: int) -> None:
        self.num_classes, self.type = num_classes, LOGITS_TYPES[logits_type]

    def expected(self, views: int) -> dict[str, tuple[str, list[int]]]:
        return {"steps": ("U8", [views, -(-self.num_classes // 2)]), "range": (self.type, [views, 2])}

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        ends = torch.stack(logits.aminmax(dim=1), dim=1)
        low, high = ends.float()[:, :, None].unbind(dim=1)
        steps = (self.steps * (logits.float() - low) / (high - low).clamp_min(1e-12)).round().byte()
        pairs = F.pad(steps, (0, self.num_classes % 2)).unflatten(1, (-1, 2))
        return {"steps": pairs[:, :, 0] + 16 * pairs[:, :, 1], "range": ends}

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Float32."""
        pairs = torch.stack((tensors["steps"] % 16, tensors["steps"] // 16), dim=2)
        low, high = tensors["range"].float()[:, :, None].unbind(dim=1)
        return low + pairs.flatten(1)[:, : self.num_classes].float() / self.steps * (high - low)

    def problem(self, tensors: Mapping[str, Tensor]) -> str | None:
        low, high = tensors["range"].unbind(dim=1)
        return None if (low <= high).all() else "the range of a soft label is reversed"
