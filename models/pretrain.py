"""Train the teachers of a dataset on its real images.

    bash models/scripts/cifar100/pretrain.sh
    torchrun --standalone --nproc-per-node 4 -m models.pretrain --dataset-name cifar100 --model ResNet18 Densenet121 \\
        --train-dir data/train/cifar100 --val-dir data/val/cifar100 --model-pool-dir pretrained_models

Each network in turn: train, test, write <Name>.safetensors and beside it the record <Name>.json with its accuracy, and
<Name>.metrics.jsonl with a line for each epoch. A stopped training goes on after its last whole epoch and ends with the
same file. A teacher that is there is not trained again; a downloaded one is tested and gets its record. <Name>@<epochs>
is a training of its own, of so many epochs, beside the others: a teacher less sure of itself, or what the whole
training set gives at that cost. <Name>@<k>of<epochs> is what such a training was after epoch k, another kind of teacher
less sure of itself: asked for together, one training leaves all of them on its way. Several processes share every batch
out and average their gradients (DistributedDataParallel); as BatchNorm then sees parts of a batch, the teacher is not
that of one process.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from tqdm import tqdm

from models import teachers
from models.checkpoints import checkpoint_path, load_network, save_state
from models.registry import architecture_of, check_network, epochs_of, kept_after, training_bytes
from models.scores import el2n, read_scores, write_scores
from models.teacher_data import DecodedImages, ResidentImages, split_batches, training_images_of, worthwhile_team
from models.teacher_training import fresh_network, make_optimiser, shared, train_epoch
from models.testing import LabelledImages, accuracy
from utils import recipes
from utils.data.digests import digest_of_folder
from utils.data.embedded import ensure_embedded
from utils.data.images import list_images, load_test_images
from utils.data.table import Dataset
from utils.recipes.settings import PretrainSettings
from utils.recipes.teachers import WHOLE_DATA_TOP1
from utils.run.device import choose_device, describe_device
from utils.run.errors import UserError, run_entry
from utils.run.files import only_one, read_json, remove, write_json_lines
from utils.run.randomness import seed_for
from utils.run.report import report_run
from utils.run.schedules import cosine
from utils.run.settings import identity_of, show
from utils.run.space import Output, print_dry_run, require_space
from utils.run.team import Team, teamwork
from utils.run.training_state import load_training, save_training


class RealImages:
    """The images of a run, read when they are first needed."""

    def __init__(self, settings: PretrainSettings, dataset: Dataset, device: torch.device) -> None:
        self.settings, self.dataset, self.device = settings, dataset, device

    @cached_property
    def training(self) -> ResidentImages | DecodedImages:
        found = list_images(self.settings.train_dir, self.dataset)
        return training_images_of(*found, self.dataset, self.device, self.settings.workers)

    @cached_property
    def test(self) -> LabelledImages:
        paths, labels = list_images(self.settings.val_dir, self.dataset)
        images = load_test_images(paths, self.dataset, self.settings.workers, progress="validation images")
        return LabelledImages(images, labels)


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        pretrain(recipes.parse("pretrain", argv), team)


def pretrain(settings: PretrainSettings, team: Team) -> None:
    dataset = settings.dataset
    if settings.like_ipc is not None:
        names = at_equal_compute(settings, dataset)
    elif settings.model:
        names = settings.model
    elif recipes.recipe_of(dataset, settings.recipe, 10).recover.source == "online":
        print(f"{dataset.name}: torchvision's IMAGENET1K_V1 weights are used online; nothing to train")
        return
    else:
        names = recipes.teachers_of(dataset, settings.recipe)
    for name in names:
        check_network(name, dataset)
    names = sorted(names, key=lambda name: kept_after(name) or math.inf, reverse=True)  # before what they pass
    show("pretrain", settings)
    device = choose_device(settings.device, team.local_rank)
    pool, started, trained = settings.model_pool_dir, time.monotonic(), 0
    absent = [name for name in names if teachers.is_to_be_trained(pool, name)]
    epochs_asked = {name: epochs_of(name) or settings.epochs for name in names}
    output = Output(
        3 * len(absent), sum(2 * training_bytes(name, dataset) + 256 * epochs_asked[name] for name in absent)
    )
    require_space(pool, output)
    if settings.dry_run:
        done = [load_training(teachers.training_path(pool, name)) or {"epoch": 0} for name in absent]
        begun = {name: state["epoch"] for name, state in zip(absent, done, strict=True)}
        passed = {other for name in absent for other in passed_by(name, absent, epochs_asked, begun[name])}
        left = [(kept_after(name) or epochs_asked[name]) - begun[name] for name in absent if name not in passed]
        print_dry_run("pretrain", {"teachers": len(absent), "epochs": sum(left)}, pool, output)
        return
    ensure_embedded(dataset, train=settings.train_dir, val=settings.val_dir)
    images = RealImages(settings, dataset, device)
    for name in names:
        its = replace(settings, epochs=epochs_asked[name])
        record = teacher_of(name, its, dataset, images, device, team, passed_by(name, names, epochs_asked))
        trained += name in absent
        if team.is_main:
            source, top1, top5 = (record[key] for key in ("source", "top1", "top5"))
            print(f"{name} ({source}): top-1 {top1:.2f} %, top-5 {top5:.2f} %", flush=True)
            warn_of_poor(name, top1, dataset, pool)
        team.wait()  # until its files are as they stay
    if team.is_main:
        files = {"teachers": str(pool)}
        report_run("pretrain", pool / "report.json", device, started, trained, "teachers", files, team.count)


def passed_by(name: str, others: Sequence[str], epochs: Mapping[str, int], begun: int = 0) -> list[str]:
    """The teachers among these that the training of `name` leaves on its way, from `begun` epochs on. epochs: those of
    each teacher's training."""

    def training_of(its_name: str) -> tuple[str, int]:
        return architecture_of(its_name), epochs[its_name]

    same, stop = training_of(name), kept_after(name) or epochs[name]
    return [o for o in others if training_of(o) == same and begun <= (kept_after(o) or math.inf) < stop]


def at_equal_compute(settings: PretrainSettings, dataset: Dataset) -> list[str]:
    """The networks named, else the recipe's student, for whole epochs of the training set that show them about as many
    images as a student sees of the distilled ones, and at least one."""
    recipe = recipes.recipe_of(dataset, settings.recipe, settings.like_ipc).validate
    if not settings.dry_run:
        ensure_embedded(dataset, train=settings.train_dir)
    paths, _ = list_images(settings.train_dir, dataset)
    seen = recipe.epochs * settings.like_ipc * dataset.num_classes
    return [f"{name}@{max(1, round(seen / len(paths)))}" for name in settings.model or (recipe.model,)]


def teacher_of(
    name: str,
    settings: PretrainSettings,
    dataset: Dataset,
    images: RealImages,
    device: torch.device,
    team: Team,
    passed: Sequence[str] = (),
) -> dict | None:
    """The record of a teacher: read, or made by testing one that is there, or by training one. None where another
    process of the team has it. passed: teachers that its training leaves on its way, where they are not there."""
    pool = settings.model_pool_dir
    identity = {"dataset_name": dataset.name, "model": name, **identity_of(settings)}
    test_images = digest_of_folder(settings.val_dir, dataset)
    if teachers.is_to_be_trained(pool, name):
        identity["train_images_sha256"] = digest_of_folder(settings.train_dir, dataset)
        with only_one(pool, f"{name} is being trained", f".{name}.lock") if team.is_main else nullcontext():
            return train(name, identity, test_images, settings, dataset, images, device, team, passed)
    record = teachers.read_record(pool, name)
    if record is not None:
        if "settings" in record:
            identity["train_images_sha256"] = digest_of_folder(settings.train_dir, dataset)
        teachers.check_trained_with(pool, record, identity)
        if team.is_main:
            remove(teachers.training_path(pool, name))  # of a run that was killed just then
        if settings.keep_scores and team.is_main:
            read_scores(pool, name, identity.get("train_images_sha256", ""))
        if record.get("test_images_sha256") == test_images:
            return record
    if not team.is_main:
        return None
    if record is None and teachers.record_path(pool, name).exists():
        print(f"note: {checkpoint_path(pool, name)} is not the file that its record speaks of: testing it as a new one")
    network = load_network(name, dataset, checkpoint_path(pool, name)).to(device)
    found = tested(network, images, dataset)
    print(f"{name}: tested, top-1 {found['top1']:.2f} %", flush=True)  # said before a pool that is read-only is met
    content = {**(record or {}), **found, "test_images_sha256": test_images}
    source = record["source"] if record else "downloaded"
    return teachers.write_record(pool, name, dataset.name, source, content)


def warn_of_poor(name: str, top1: float, dataset: Dataset, pool: Path) -> None:
    """Warn of a teacher near chance, or with less than half of the best accuracy that is recorded or published."""
    recorded = [read_json(path).get("top1", 0.0) for path in pool.glob("*.json") if path.name != "report.json"]
    known, chance = max([*recorded, WHOLE_DATA_TOP1.get(dataset.name, 0.0)]), 100 / dataset.num_classes
    if teachers.is_poor(top1, known, dataset):
        print(
            f"WARNING: {name} has {top1:.2f} % on {dataset.name} (chance {chance:.2f}, best known {known:.2f} %): the "
            "order of its classes may not be that of the class folders, or it is of other images or another size",
            flush=True,
        )


def tested(network: torch.nn.Module, images: RealImages, dataset: Dataset) -> dict[str, float]:
    """top1 and top5 in percent; leaves the network in eval mode."""
    return dict(zip(("top1", "top5"), accuracy(network.eval(), images.test, dataset), strict=True))


def train(
    name: str,
    identity: dict[str, object],
    test_images: str,
    settings: PretrainSettings,
    dataset: Dataset,
    images: RealImages,
    device: torch.device,
    team: Team,
    passed: Sequence[str] = (),
) -> dict | None:
    """Train one teacher from the start or from where it stopped; leaves its checkpoint, returns its record.

    identity: what the training belongs to; test_images: digest of the validation images; passed: teachers to leave on
    the way, where they are absent: each after its epoch, with its own tests and record. Of the team only the main
    process writes and returns something; where batches are too small for all, some have nothing to do.
    """
    pool, seed, epochs, batch_size = settings.model_pool_dir, settings.seed, settings.epochs, settings.batch_size
    training_images = images.training
    team = worthwhile_team(team, batch_size, len(training_images))
    if team.rank >= team.count:
        return None
    network = fresh_network(name, dataset, seed, device)
    optimiser = make_optimiser(network, settings)
    unfinished = teachers.training_path(pool, name)
    state = load_training(unfinished, identity) or {"epoch": 0, "seconds": 0.0, "tests": []}
    stop = kept_after(name) or epochs
    if state["epoch"] < stop:
        refuse_two_sources(pool, name)
    scores = state.get("scores", [])
    if settings.keep_scores and len(scores) != state["epoch"]:
        raise UserError(f"{unfinished} was begun without --keep-scores: leave it out, or remove that file")
    if state["epoch"] > 0:
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
    learner = shared(network, team, device)
    tests, started = state["tests"], time.monotonic() - state["seconds"]
    metrics = state.get("metrics", [])
    if metrics and team.is_main:  # a killed run may have left a line less
        write_json_lines(teachers.metrics_path(pool, name), metrics)
    to_leave = {kept_after(other): other for other in passed if teachers.is_to_be_trained(pool, other)}

    def leave(its_name: str) -> dict:
        """Write a teacher as the network is now, after the epochs of `state`; returns its record."""
        if not tests or tests[-1]["epoch"] != state["epoch"]:
            tests.append({"epoch": state["epoch"], **tested(network, images, dataset)})
        if settings.keep_scores:
            write_scores(pool, its_name, torch.stack(scores), identity["train_images_sha256"])
        write_json_lines(teachers.metrics_path(pool, its_name), metrics)
        save_state(teachers.weights_path(pool, its_name), network, {"teacher": f"{its_name}, {dataset.name}"})
        content = {"top1": tests[-1]["top1"], "top5": tests[-1]["top5"]}
        content |= {"settings": {**identity, "model": its_name}, "epochs": state["epoch"]}
        content |= {"tests": tests, "test_images_sha256": test_images, "seconds": state["seconds"]}
        content |= {"device": describe_device(device), "processes": team.count}
        record = teachers.write_record(pool, its_name, dataset.name, "trained", content)
        teachers.training_path(pool, its_name).unlink(missing_ok=True)
        return record

    if team.is_main and state["epoch"] in to_leave:  # a killed run had not come to it
        leave(to_leave[state["epoch"]])
    iterations = len(split_batches(training_images.labels, batch_size, team))
    with tqdm(total=stop * iterations, initial=state["epoch"] * iterations, desc=name, unit="it") as progress:
        for epoch in range(state["epoch"], stop):
            begun = time.monotonic()
            torch.manual_seed(seed_for(seed, "pretrain-noise", epoch) + team.rank)  # what dropout draws
            rate = cosine(settings.lr, epoch, epochs)
            for group in optimiser.param_groups:
                group["lr"] = rate
            batches = training_images.batches(seed, epoch, batch_size, team)
            line = {"epoch": epoch, "lr": rate}
            line["loss"] = train_epoch(learner, optimiser, batches, dataset, epoch, progress)
            if not team.is_main:
                continue
            if is_tested(epoch, stop, settings.test_every) or epoch + 1 in to_leave:
                found = tested(network, images, dataset)
                tests.append({"epoch": epoch + 1, **found})
                line |= found
                progress.write(f"{name}, epoch {epoch + 1}: top-1 {found['top1']:.2f} %")
            if settings.keep_scores:
                scores.append(el2n(network, training_images, dataset))
            metrics.append({**line, "seconds": round(time.monotonic() - begun, 3)})
            state = {"epoch": epoch + 1, "seconds": time.monotonic() - started, "tests": tests, "scores": scores}
            state |= {"metrics": metrics}
            tensors = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            passes = [to_leave[epoch + 1]] if epoch + 1 in to_leave else []
            for its_name in (*passes, name):  # the one that is passed first: it is to be left also after a kill
                save_training(teachers.training_path(pool, its_name), {**identity, "model": its_name}, state | tensors)
            write_json_lines(teachers.metrics_path(pool, name), metrics)
            for its_name in passes:
                leave(its_name)

    return leave(name) if team.is_main else None


def is_tested(epoch: int, epochs: int, test_every: int) -> bool:
    """Whether a teacher is tested after this epoch: after every so many (0: none), and the last."""
    return epoch + 1 == epochs or (test_every > 0 and (epoch + 1) % test_every == 0)


def refuse_two_sources(pool: Path, name: str) -> None:
    """UserError if a checkpoint appeared beside a training that has not ended."""
    if (checkpoint := checkpoint_path(pool, name)) is not None:
        raise UserError(
            f"{checkpoint} lies beside a training that has not ended, {teachers.training_path(pool, name).name}: "
            "remove the one that you do not want"
        )


if __name__ == "__main__":
    run_entry(main)
