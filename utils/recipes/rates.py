"""Learning rate and eta of the students: (dataset, student): {IPC: (rate, eta)}. eta 2 ends a cosine at half the rate.

These are of FADRM's protocol, under which all methods are compared; a method's file may give others (`Recipe.rates`).
They are the paper's; in two places its published scripts have another rate.
"""

from utils.data.table import Dataset

STUDENT_RATES = {
    ("cifar100", "ResNet18"): {1: (0.0005, 2), 10: (0.001, 2), 50: (0.001, 1)},
    ("cifar100", "ResNet50"): {1: (0.001, 1), 10: (0.001, 2), 50: (0.001, 1)},
    ("cifar100", "ResNet101"): {1: (0.0005, 1), 10: (0.0005, 1), 50: (0.0005, 1)},
    ("tiny_imagenet", "ResNet18"): {1: (0.001, 2), 10: (0.001, 2), 50: (0.001, 1)},
    ("tiny_imagenet", "ResNet50"): {1: (0.0005, 2), 10: (0.0005, 2), 50: (0.0005, 1)},
    ("tiny_imagenet", "ResNet101"): {1: (0.0005, 2), 10: (0.0005, 2), 50: (0.0005, 1)},
    ("imagewoof", "ResNet18"): {1: (0.0005, 2), 10: (0.0005, 1), 50: (0.001, 2)},
    ("imagewoof", "ResNet50"): {1: (0.0005, 2), 10: (0.0005, 1), 50: (0.0005, 1)},  # published script: 0.005
    ("imagewoof", "ResNet101"): {1: (0.001, 1), 10: (0.0005, 2), 50: (0.0005, 1)},
    ("imagenet-nette", "ResNet18"): {1: (0.0005, 2), 10: (0.0005, 1), 50: (0.0005, 2)},
    ("imagenet-nette", "ResNet50"): {1: (0.0005, 2), 10: (0.0005, 1), 50: (0.0005, 1)},
    ("imagenet-nette", "ResNet101"): {1: (0.0005, 2), 10: (0.0005, 2), 50: (0.001, 2)},
    ("imagenet1k", "ResNet18"): {1: (0.001, 2), 10: (0.001, 2), 50: (0.001, 1)},
    ("imagenet1k", "ResNet50"): {1: (0.0005, 2), 10: (0.001, 2), 50: (0.001, 1)},
    ("imagenet1k", "ResNet101"): {1: (0.0005, 2), 10: (0.001, 2), 50: (0.0005, 1)},  # published script: 0.0035
    ("fashion_mnist", "ConvNetBN_W32"): dict.fromkeys((1, 10, 50), (0.02, 1)),
    ("fashion_mnist", "ConvNetBN_W64"): dict.fromkeys((1, 10, 50), (0.02, 1)),
}
UP_TO_IPC_10, ABOVE = (0.0005, 2), (0.001, 1)  # where none is published


def rates_of(dataset: Dataset, ipc: int) -> dict[str, tuple[float, float]]:
    """Rate and eta of every student that has published ones for a dataset and IPC."""
    of_students = {student: by_ipc for (name, student), by_ipc in STUDENT_RATES.items() if name == dataset.name}
    return {student: by_ipc[ipc] for student, by_ipc in of_students.items() if ipc in by_ipc}


def default_rate(ipc: int) -> tuple[float, float]:
    """Rate and eta of a student that has no published ones."""
    return UP_TO_IPC_10 if ipc <= 10 else ABOVE
