"""Train the teachers of a dataset on its real images.

    bash models/scripts/cifar100/pretrain.sh
    python -m models.pretrain --dataset-name cifar100 --model ResNet18 Densenet121 --train-dir data/train/cifar100 \\
        --val-dir data/val/cifar100 --model-pool-dir pretrained_models/cifar100_pretrained_models

Each network in turn: train, test, write <Name>.safetensors and beside it the record <Name>.json with its accuracy. A
stopped training goes on after its last whole epoch and ends with the same file. A teacher that is there is not trained
again; a downloaded one is tested and gets its record.
"""

import time
from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from models import teacher_records
from models.checkpoints import checkpoint_path, load_network, save_state
from models.pretrain_flags import parse, settings_of
from models.teacher_data import DecodedImages, ResidentImages, split_batches
from models.teacher_training import fresh_network, make_optimiser, network_accuracy, train_epoch
from utils.cli import print_settings
from utils.datasets import Dataset, get_dataset, list_images, load_images, load_test_images
from utils.device import choose_device, describe_device
from utils.distillation import epoch_rate
from utils.errors import run_entry
from utils.randomness import seed_for
from utils.report import report_run
from utils.training_state import load_training, save_training

LARGEST_RESIDENT = 64  # pixels a side; larger images come in all sizes and are cropped out of their own


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(argv)
    dataset = get_dataset(given.dataset_name)
    device = choose_device(given.device)
    pool, started, trained = given.model_pool_dir, time.monotonic(), 0
    test_images = training_images = None
    for name in given.model:
        settings = settings_of(given, name)
        print_settings("pretrain", Namespace(**vars(given) | settings))
        record = teacher_records.read_record(pool, name)
        if record is not None:
            teacher_records.check_trained_with(pool, record, settings)
        else:
            test_images = test_images or load_validation(given, dataset)
            if teacher_records.is_downloaded(pool, name):
                network = load_network(name, dataset, checkpoint_path(pool, name)).to(device)
                accuracy = network_accuracy(network, *test_images, dataset)
                record = teacher_records.write_record(pool, name, dataset.name, "downloaded", accuracy)
            else:
                training_images = training_images or load_training_images(given, dataset, device)
                record = train(name, settings, given, dataset, training_images, test_images, device)
                trained += 1
        print(f"{name} ({record['source']}): top-1 {record['top1']:.2f} %, top-5 {record['top5']:.2f} %", flush=True)
    report_run("pretrain", pool / "report.json", device, started, trained, "teachers", {"teachers": str(pool)})


def load_validation(given: Namespace, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The validation images (uint8, N x 3 x S x S) and their labels (N)."""
    paths, labels = list_images(given.val_dir, dataset)
    return load_test_images(paths, dataset, workers=given.workers, progress="validation images"), labels


def load_training_images(given: Namespace, dataset: Dataset, device: torch.device) -> ResidentImages | DecodedImages:
    paths, labels = list_images(given.train_dir, dataset)
    if dataset.size > LARGEST_RESIDENT:
        return DecodedImages(paths, labels, dataset, device, given.workers)
    images = load_images(paths, dataset, workers=given.workers, progress="training images")
    return ResidentImages(images, labels, dataset, device)


def train(
    name: str,
    settings: dict,
    given: Namespace,
    dataset: Dataset,
    training_images: ResidentImages | DecodedImages,
    test_images: tuple[Tensor, Tensor],
    device: torch.device,
) -> dict:
    """Train one teacher from the start or from where it stopped; leaves its checkpoint, returns its record."""
    pool, seed, epochs, batch_size = given.model_pool_dir, settings["seed"], settings["epochs"], settings["batch_size"]
    network = fresh_network(name, dataset, seed, device)
    optimiser = make_optimiser(network, settings)
    unfinished = teacher_records.training_path(pool, name)
    state = load_training(unfinished, settings) or {"epoch": 0, "seconds": 0.0, "tests": []}
    if state["epoch"] < epochs:
        teacher_records.refuse_two_sources(pool, name)
    if state["epoch"] > 0:
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
    tests, started = state["tests"], time.monotonic() - state["seconds"]
    iterations = len(split_batches(training_images.labels, batch_size))
    with tqdm(total=epochs * iterations, initial=state["epoch"] * iterations, desc=name, unit="it") as progress:
        for epoch in range(state["epoch"], epochs):
            torch.manual_seed(seed_for(seed, "pretrain-noise", epoch))  # what dropout draws
            for group in optimiser.param_groups:
                group["lr"] = epoch_rate(settings["lr"], epoch, epochs, eta=1)
            train_epoch(network, optimiser, training_images.batches(seed, epoch, batch_size), dataset, epoch, progress)
            if epoch + 1 == epochs or (given.test_every and (epoch + 1) % given.test_every == 0):
                tests.append({"epoch": epoch + 1, **network_accuracy(network, *test_images, dataset)})
                progress.write(f"{name}, epoch {epoch + 1}: top-1 {tests[-1]['top1']:.2f} %")
            state = {"epoch": epoch + 1, "seconds": time.monotonic() - started, "tests": tests}
            tensors = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            save_training(unfinished, settings, state | tensors)

    save_state(teacher_records.weights_path(pool, name), network, {"teacher": f"{name}, {dataset.name}"})
    content = {"top1": tests[-1]["top1"], "top5": tests[-1]["top5"], "settings": settings, "epochs": epochs}
    content |= {"tests": tests, "seconds": state["seconds"], "device": describe_device(device)}
    record = teacher_records.write_record(pool, name, dataset.name, "trained", content)
    unfinished.unlink()
    return record


if __name__ == "__main__":
    run_entry(main)
