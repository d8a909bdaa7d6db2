"""Students of the paper's tables, each for an epoch at its dataset's size."""

from dataclasses import replace

import pytest
import torch

from tests.relabel.test_labelling import Bar
from tests.views import VIEWS
from utils import recipes
from utils.data.table import get_dataset
from utils.fkd.views import draw_epoch
from utils.run.randomness import generator_for
from validate.training import prepare_student, train_epoch

AT_224 = (
    *("ResNet18", "ResNet50", "ResNet101", "WRN-50-2", "MobileNetV2", "ShuffleNetV2", "ShuffleNetV2_x0_5"),
    *("EfficientNet", "Densenet121", "Densenet169", "Densenet201", "Swin_T", "ConvNeXt_Tiny"),
    *("timm:deit_tiny_patch16_224", "AlexNet"),
)
SMALL = ("ResNet18", "ResNet50", "ResNet101", "MobileNetV2", "ShuffleNetV2", "Densenet121", "WRN-16-2", "ConvNetW128")
CELLS = [
    *(("imagenet-nette", name) for name in AT_224),
    *((dataset, name) for dataset in ("cifar100", "tiny_imagenet") for name in SMALL),
    *(("fashion_mnist", name) for name in ("ConvNetBN_W32", "ConvNetBN")),
]


@pytest.mark.parametrize(("dataset", "student"), CELLS, ids=lambda word: word)
def test_a_student_learns_for_an_epoch(dataset, student):
    dataset = get_dataset(dataset)
    settings = recipes.stage_of("validate", dataset, "fadrm+", 10, student)
    views = replace(VIEWS, images=4, size=dataset.size, batch_size=4, epochs=1)
    images = torch.randint(0, 256, (4, 3, dataset.size, dataset.size), generator=generator_for("x"), dtype=torch.uint8)
    logits = torch.randn(4, dataset.num_classes, generator=generator_for("logits"))
    learner = prepare_student(settings, 0, dataset, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in learner.student.named_parameters()}
    learner.student.train()
    stored, classes = (draw_epoch(views, 0), logits), torch.arange(4)
    losses = train_epoch(learner, settings, 0, stored, views, images, classes, dataset, Bar())
    assert len(losses) == 1 and losses.isfinite().all()
    moved = [not torch.equal(tensor, before[name]) for name, tensor in learner.student.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)
