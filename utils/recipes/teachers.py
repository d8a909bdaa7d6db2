"""How the teachers of a dataset are trained, and what the paper has for the whole of it."""

from utils.data.table import Dataset
from utils.recipes.settings import PretrainSettings

# As the paper's appendix has them (SGD, momentum 0.9, weight decay 1e-4, cosine); the teachers of imagenet1k are
# torchvision's, trained already. How long a teacher learns matters: with 50, 100, 150, 200 epochs of cifar100 the
# paper's students reach 61.5, 59.6, 58.7, 58.3 %.
SMALL = {"optimizer": "sgd", "lr": 0.1, "batch_size": 128, "epochs": 50}
TEACHER_TRAINING = {
    "cifar100": SMALL,
    "cifar10": SMALL,
    "tiny_imagenet": {"optimizer": "sgd", "lr": 0.1, "batch_size": 64, "epochs": 150},
    "imagenet-nette": {"optimizer": "sgd", "lr": 0.01, "batch_size": 128, "epochs": 300},
    "imagewoof": {"optimizer": "sgd", "lr": 0.1, "batch_size": 128, "epochs": 50},
    "fashion_mnist": {"optimizer": "adam", "lr": 0.01, "batch_size": 32, "epochs": 10, "weight_decay": 0.0},
}
OF_SIZE = {32: "cifar100", 64: "tiny_imagenet", 224: "imagenet-nette"}  # whose training a user's own dataset takes

# Top-1 of a ResNet18 trained on the whole of a dataset, in percent, as the paper gives it.
WHOLE_DATA_TOP1 = {
    "cifar100": 78.9,
    "tiny_imagenet": 68.9,
    "imagenet-nette": 93.8,
    "imagewoof": 88.2,
    "imagenet1k": 72.3,
}


def teacher_training(dataset: Dataset) -> PretrainSettings:
    """The settings of a dataset's teachers, where they are trained here."""
    return PretrainSettings(**TEACHER_TRAINING.get(dataset.name, TEACHER_TRAINING[OF_SIZE[dataset.size]]))
