"""What stands beside a teacher's checkpoint: a record of where it comes from and how good it is.

<pool>/<Name>.safetensors           the checkpoint (or <Name>.pth, downloaded)
<pool>/<Name>.json                  the record: source, settings, top1 and top5 on the validation images, sha256
<pool>/<Name>.metrics.jsonl         a line for each epoch of its training: loss, learning rate, seconds, tests
<pool>/<Name>.training.safetensors  a training that goes on; gone once it is done
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.checkpoints import checkpoint_path
from utils.data.table import Dataset
from utils.recipes import file_name
from utils.run.device import versions
from utils.run.errors import UserError
from utils.run.files import read_json, sha256_of, write_json
from utils.run.records import Shape, check_shape, differences, plain
from utils.run.training_state import SUFFIX

RECORD: Shape = {"sha256": str, "source": ("trained", "downloaded"), "top1": float, "top5": float, "checkpoint": str}


def weights_path(pool: Path, name: str) -> Path:
    """Where a trained teacher's checkpoint goes."""
    return pool / f"{file_name(name)}.safetensors"


def record_path(pool: Path, name: str) -> Path:
    return pool / f"{file_name(name)}.json"


def metrics_path(pool: Path, name: str) -> Path:
    return pool / f"{file_name(name)}.metrics.jsonl"


def training_path(pool: Path, name: str) -> Path:
    return pool / f"{file_name(name)}.training{SUFFIX}"


def read_record(pool: Path, name: str) -> dict | None:
    """The record of the checkpoint that is there; None where there is none, or it speaks of another file."""
    checkpoint, path = checkpoint_path(pool, name), record_path(pool, name)
    if checkpoint is None or not path.exists():
        return None
    record = read_json(path)
    check_shape(path, record, RECORD, "remove it; models.pretrain tests the teacher and writes it again")
    return record if record["sha256"] == sha256_of(checkpoint) else None


def is_to_be_trained(pool: Path, name: str) -> bool:
    """Whether there is no checkpoint, or one that a training has just left without its record."""
    if read_record(pool, name) is not None:
        return False
    return checkpoint_path(pool, name) is None or training_path(pool, name).exists()


def recorded_accuracies(pool: Path | None, names: Sequence[str]) -> tuple[float, ...]:
    """The recorded top-1 of these teachers, in percent; says that it takes them. UserError where one has no record."""
    records = {name: pool and read_record(pool, name) for name in names}
    if unknown := next((name for name, record in records.items() if record is None), None):
        where = f"{pool} has" if pool else "without --model-pool-dir there is"
        raise UserError(f"{where} no record of {unknown} with its accuracy: models.pretrain tests it and writes one")
    shown = ", ".join(f"{name} {record['top1']:.2f} %" for name, record in records.items())
    print(f"note: no priors are given or published: taking the teachers' recorded accuracies, {shown}", flush=True)
    return tuple(records[name]["top1"] for name in names)


def is_poor(top1: float, known: float, dataset: Dataset) -> bool:
    """Whether an accuracy in percent is near chance, or less than half of what is known to be possible."""
    return top1 < max(1.5 * 100 / dataset.num_classes, known / 2)


def check_trained_with(pool: Path, record: Mapping, settings: Mapping[str, object]) -> None:
    """UserError if a teacher of this project was trained with other settings than those asked for.

    Nothing is asked of a downloaded one, nor what an older record does not tell.
    """
    told = record.get("settings")
    if told is None:
        return
    asked = {name: value for name, value in settings.items() if name in told or name != "train_images_sha256"}
    if found := differences(told, asked):
        raise UserError(
            f"{pool / record['checkpoint']} was trained with other settings: {found}; "
            "give the same ones, take another --model-pool-dir, or move it away"
        )


def write_record(pool: Path, name: str, dataset_name: str, source: str, content: Mapping[str, object]) -> dict:
    """Record the checkpoint that is there now; returns what was written.

    source: "trained" or "downloaded"; content: top1 and top5 in percent, and what else is known of it.
    """
    checkpoint = checkpoint_path(pool, name)
    record = {
        "dataset": dataset_name,
        "model": name,
        "source": source,
        "checkpoint": checkpoint.name,
        "sha256": sha256_of(checkpoint),
        **plain(content),
        "versions": versions(),
    }
    write_json(record_path(pool, name), record)
    return record
