"""What the recipes of all methods share: the protocol of each dataset, from which a method differs.

The published runs' settings, by dataset; a user's own dataset takes those of its image size. A method's file takes
`base(dataset, ipc)` and sets what is its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from utils.data.table import Dataset
from utils.recipes.rates import rates_of
from utils.recipes.settings import PatchSettings, RecoverSettings, RelabelSettings, ValidateSettings

IPCS = (1, 10, 50)  # what is published; every other IPC resolves too

Rates = Mapping[str, tuple[float, float]]  # learning rate and eta by student


@dataclass(frozen=True)
class Recipe:
    """How images of one dataset, method and IPC are made, labelled and trained on. rates: see
    utils/recipes/rates.py."""

    patches: PatchSettings
    recover: RecoverSettings
    relabel: RelabelSettings
    validate: ValidateSettings
    rates: Rates

    def set(self, **changes: object) -> "Recipe":
        """The same with settings changed, each in every stage that has one of that name."""
        changed: dict[str, object] = {}
        for stage in ("patches", "recover", "relabel", "validate"):
            settings = getattr(self, stage)
            names = {field.name for field in fields(settings)} & changes.keys()
            changed[stage] = replace(settings, **{name: changes[name] for name in names})
            changed.setdefault("known", set()).update(names)
        if unknown := changes.keys() - changed.pop("known"):
            raise ValueError(f"no stage has the settings {sorted(unknown)}")
        return replace(self, **changed)

    def set_in(self, stage: str, **changes: object) -> "Recipe":
        """The same with settings of one stage changed."""
        return replace(self, **{stage: replace(getattr(self, stage), **changes)})


def base(dataset: Dataset, ipc: int) -> Recipe:
    """The settings of the published runs that do not depend on the method."""
    size, classes = dataset.size, dataset.num_classes
    epochs = 1000 if size == 32 or (size == 64 and ipc == 1) else 300
    recipe = Recipe(PatchSettings(), RecoverSettings(), RelabelSettings(), ValidateSettings(), rates_of(dataset, ipc))
    recipe = recipe.set(
        # recover
        start="Patches",
        sizes=(size,),
        lr=0.25,
        r_bn=0.01,
        augment=True,
        classes_a_batch=min(100, classes),
        ipc_end=ipc,
        # patches
        patches_per_class=max(50, ipc),
        # relabel and validate
        epochs=epochs,
        batch_size=min(10 if size == 224 and classes <= 10 else 16, classes * ipc),
        mix="cutmix",
        use_fp16=True,
        model="ResNet18",
        accumulation=2,
        temperature=20.0,
        schedule="cosine",
    )
    if dataset.name == "imagenet1k":
        recipe = recipe.set(source="online")
    return fashion_mnist(recipe, ipc) if dataset.name == "fashion_mnist" else recipe


def fashion_mnist(recipe: Recipe, ipc: int) -> Recipe:
    """This project's own recipe for the embedded dataset, small enough for two cores.

    Chosen on the training images alone, 500 a class to learn from and 100 to test on, by the student's mean of two
    seeds at 120 epochs and IPC 10: random images 71 %, easy patches 73, fadrm+ at a rate of 0.02, 0.05, 0.1: 75, 75,
    76.
    """
    return recipe.set(
        lr=0.1,
        selector="easy",
        observer="ConvNetBN_W64",
        crop_area=(1.0, 1.0),
        num_crops=1,
        max_images=600,
        epochs=600 if ipc == 1 else 150,
        batch_size=10,
        min_scale=0.5,
        model="ConvNetBN_W32",
    ).set_in("validate", seed=(0, 1, 2))


def iterations(dataset: Dataset, published: int) -> int:
    """The iterations of a published run as they are here: a tenth on the embedded dataset."""
    return published // 10 if dataset.name == "fashion_mnist" else published
