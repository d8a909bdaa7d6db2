"""What a method can be made of: the seams, each a table from a name that recipes and flags use to what it stands for.

A method is one file in utils/recipes/ that names an entry of each table. A new kind of entry is a function with the
table's decorator above it, in that same file or wherever it belongs:

    from utils.seams import TERMS

    @TERMS.add("total_variation")
    def total_variation(settings):
        return lambda seen: (seen.view.diff(dim=-1).abs().mean() + seen.view.diff(dim=-2).abs().mean())

Nothing here imports PyTorch.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from utils.run.errors import UserError

Entry = TypeVar("Entry", bound=Callable[..., Any])


class Seam:
    """A table of one seam's entries. `in`, iteration and `[]` go by name; UserError for a name that is not there.

    home: the module that enters the standard ones, imported with the first look at the table.
    """

    def __init__(self, kind: str, home: str) -> None:
        self.kind, self.home = kind, home
        self._entries: dict[str, Any] = {}

    def add(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator: enter a function or class under `name`."""

        def enter(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"the {self.kind} {name} is there twice")
            self._entries[name] = entry
            return entry

        return enter

    def remove(self, name: str) -> None:
        del self._entries[name]

    @property
    def entries(self) -> dict[str, Any]:
        importlib.import_module(self.home)
        return self._entries

    def __getitem__(self, name: str) -> Any:
        if name not in self.entries:
            raise UserError(f"unknown {self.kind} {name!r}; there are: {' '.join(self)}")
        return self.entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)


# which images make a batch: (classes, image indices, size) -> [Batch]
LAYOUTS = Seam("layout", "recover.batches")
# who is asked: settings -> committee(batch, iteration) -> [(place of the teacher, weight)]
COMMITTEES = Seam("committee", "recover.committee")
# a term of recover's loss: settings -> term(seen) -> scalar
TERMS = Seam("term", "recover.terms")
# what is matched: which layers, what is measured of their input, what it should be
PROBES = Seam("probe", "utils.bn_matching.probes")
# which image index each training image counts for: (settings, teachers, training images) -> N indices
GROUPINGS = Seam("grouping", "recover.by_index")
# what happens between two stages: settings, patches -> residual(images, stage, next size) -> images
RESIDUALS = Seam("residual", "utils.residual.residuals")
# which crops or images of a class are taken: (candidates, count, generator) -> places
SELECTORS = Seam("selector", "utils.patches.selectors")
# how the logits of an epoch lie in its file: (classes, type, k) -> codec
CODECS = Seam("codec", "utils.fkd.codec")
# what a training epoch shows of a store: (store, settings, seed, classes) -> replay(epoch) -> Played
REPLAYS = Seam("replay", "utils.fkd.replay")
# what a student minimises: settings -> loss(logits, target) -> scalar
LOSSES = Seam("loss", "utils.fkd.losses")
# a learning rate over a run: (rate, step, steps, eta) -> rate of the step
SCHEDULES = Seam("schedule", "utils.run.schedules")
