"""What a run keeps on request beside its images: what they start as, what each stage ends with, measures on the way.

None of it changes an image, and none is made of images that are there already: a run says what they lack.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints import Teacher, load_teacher
from recover.batches import Batch
from recover.measures import Measures, is_measured, measures_folder, measures_path
from recover.optimise import Plan, Step
from utils.data.distilled import is_made_with, write_distilled
from utils.data.images import to_pixels
from utils.data.table import Dataset
from utils.recipes.settings import NO_REFERENCE, RecoverSettings
from utils.residual.residuals import Residual
from utils.run.background import BackgroundWriter
from utils.run.files import remove
from utils.run.team import Team


def start_folder(folder: Path) -> Path:
    """Where what images start as is kept, beside their folder."""
    return folder.with_name(f"{folder.name}_initialised")


def stage_folder(folder: Path, stage: int) -> Path:
    """Where images are kept as stage 1, 2, ... ended with them, beside the folder of the images: the last stage's."""
    return folder.with_name(f"{folder.name}_stage{stage}")


def stages_kept(settings: RecoverSettings) -> range:
    """The stages whose images are kept, by number; the last one's are the images themselves."""
    return range(1, len(settings.sizes)) if settings.store_stages else range(0)


def copies_of(settings: RecoverSettings) -> int:
    """How many files a run writes for each image, the image itself among them."""
    return 1 + settings.store_initialised_images + len(stages_kept(settings))


class Extras:
    """What is asked for beside the images of one run in `folder`, and what those that are there already lack of it."""

    def __init__(
        self, settings: RecoverSettings, plan: Plan, folder: Path, dataset: Dataset, device: torch.device
    ) -> None:
        self.settings, self.plan, self.folder, self.dataset = settings, plan, folder, dataset
        self.stages, self.lacking = stages_kept(settings), Counter()
        self.reference = reference_of(settings, dataset, device)

    def of(self, batch: Batch, digest: str, start: Tensor, labels: Tensor) -> "Kept":
        """What is kept of a batch that is about to be made. digest: what its images will be marked with; start: B x 3 x
        s x s, normalised; labels: B. UserError where another run's images are in the place of stages."""
        self.has_stages(batch, digest)
        return Kept(self, batch, digest, start, labels)

    def about(self, batch: Batch, digest: str) -> dict[str, object] | None:
        """What the measures of a batch are of, the first line of their file; None where none are asked for."""
        if not self.settings.measure_every:
            return None
        by = {"reference": NO_REFERENCE}
        if self.reference is not None:
            by = {"reference": self.reference.name, "reference_sha256": self.reference.sha256}
        about = {"batch": str(batch), "images": len(batch.members), **by}
        return about | {"every": self.settings.measure_every, "made_with": digest}

    def stage_paths(self, batch: Batch, stage: int) -> list[Path]:
        return batch.paths(stage_folder(self.folder, stage), self.dataset)

    def has_stages(self, batch: Batch, digest: str) -> bool:
        """Whether all that is asked for of its stages is there; UserError where it is another run's."""
        return all(is_made_with(path, digest) for stage in self.stages for path in self.stage_paths(batch, stage))

    def look_for(self, batch: Batch, digest: str) -> None:
        """Note what a batch lacks whose images are there already."""
        about = self.about(batch, digest)
        self.lacking["measures"] += about is not None and not is_measured(measures_path(self.folder, batch), about)
        self.lacking["stages"] += not self.has_stages(batch, digest)

    @property
    def files(self) -> Mapping[str, str]:
        """Where the extras are, by name."""
        measures = {"measures": str(measures_folder(self.folder))} if self.settings.measure_every else {}
        return measures | ({"stages": str(stage_folder(self.folder, 1))} if self.stages else {})

    def complete_stages(self, team: Team) -> range:
        """Say what batches lack, of all processes together; the stages that all images have. For all to call."""
        lacking = {name: team.total(self.lacking[name]) for name in ("measures", "stages")}
        by = f" by {self.reference.name}" if self.reference else ", of the loss alone"
        names = {
            "measures": f"measures every {self.settings.measure_every} iterations{by}",
            "stages": "the images of their stages",
        }
        for name, count in lacking.items():
            if count:
                print(
                    f"note: {count} of the batches were there already, without {names[name]}: move {self.folder} away, "
                    f"and the same command makes the same images and {names[name]}",
                    flush=True,
                )
        return range(0) if lacking["stages"] else self.stages


class Kept:
    """What is kept of one batch while it is made."""

    def __init__(self, extras: Extras, batch: Batch, digest: str, start: Tensor, labels: Tensor) -> None:
        self.extras, self.batch, self.digest, self.start = extras, batch, digest, start
        self.stages: dict[int, Tensor] = {}
        about, reference = extras.about(batch, digest), extras.reference
        self.measures = None
        if about is not None:
            network = reference and reference.module
            self.measures = Measures(about, network, start, labels, extras.plan.iterations, extras.dataset)

    def around(self, residual: Residual) -> Residual:
        """The same residual, which leaves here what it is asked to keep."""
        if self.extras.stages:
            residual = self._keeping(residual)
        return residual if self.measures is None else self.measures.around(residual)

    def _keeping(self, residual: Residual) -> Residual:
        def keep(images: Tensor, stage: int, size: int) -> Tensor:
            self.stages[stage] = to_pixels(images.detach(), self.extras.dataset).cpu()
            return residual(images, stage, size)

        return keep

    def after(self, step: Step) -> None:
        if self.measures is not None:
            self.measures.after(step)

    def write(self, writer: BackgroundWriter) -> None:
        """Leave all of it with the writer: before the images, which say that the batch is done."""
        extras, place = self.extras, measures_path(self.extras.folder, self.batch)
        if self.measures is not None:
            writer.submit(self.measures.write, place)
        else:
            remove(place)  # measures of images that were here before
        if extras.settings.store_initialised_images:
            initial = self.batch.paths(start_folder(extras.folder), extras.dataset)
            writer.submit(write_distilled, initial, to_pixels(self.start, extras.dataset).cpu(), self.digest)
        for stage, pixels in self.stages.items():
            writer.submit(write_distilled, extras.stage_paths(self.batch, stage), pixels, self.digest)


def reference_of(settings: RecoverSettings, dataset: Dataset, device: torch.device) -> Teacher | None:
    """The network that measures, if one is asked for: a copy of its own, since teachers note what they see."""
    if not settings.measure_every or settings.reference == NO_REFERENCE:
        return None
    name = settings.reference or settings.teachers[0]
    teacher = load_teacher(name, dataset, settings.model_pool_dir, settings.source)
    teacher.module.to(device)
    return teacher
