"""What stands beside a teacher's checkpoint: a record of where it comes from and how good it is.

<pool>/<Name>.safetensors  the checkpoint (or <Name>.pth, downloaded)
<pool>/<Name>.json         the record: source, settings, top1 and top5 on the validation images in percent, sha256, ...
<pool>/<Name>.training.pt  a training that goes on; gone once it is done
"""

from collections.abc import Mapping
from pathlib import Path

from models.checkpoints import checkpoint_path
from utils.device import versions
from utils.errors import UserError
from utils.files import read_json, sha256_of, write_json
from utils.recipes import file_name
from utils.records import differences, plain


def weights_path(pool: Path, name: str) -> Path:
    """Where a trained teacher's checkpoint goes."""
    return pool / f"{file_name(name)}.safetensors"


def record_path(pool: Path, name: str) -> Path:
    return weights_path(pool, name).with_suffix(".json")


def training_path(pool: Path, name: str) -> Path:
    return weights_path(pool, name).with_suffix(".training.pt")


def is_downloaded(pool: Path, name: str) -> bool:
    """Whether the checkpoint that is there, without a record of its own, is not one that a training just left."""
    return checkpoint_path(pool, name) is not None and not training_path(pool, name).exists()


def is_to_be_trained(pool: Path, name: str) -> bool:
    """Whether there is neither a teacher with its record nor a downloaded one."""
    return not is_downloaded(pool, name) and read_record(pool, name) is None


def read_record(pool: Path, name: str) -> dict | None:
    """The record of the checkpoint that is there.

    None without a checkpoint or a record, and where the record tells of another file than the one that is there now.
    """
    checkpoint, record = checkpoint_path(pool, name), record_path(pool, name)
    if checkpoint is None or not record.exists():
        return None
    content = read_json(record)
    return content if content.get("sha256") == sha256_of(checkpoint) else None


def refuse_two_sources(pool: Path, name: str) -> None:
    """UserError if a checkpoint appeared beside a training that has not ended."""
    if (checkpoint := checkpoint_path(pool, name)) is not None:
        raise UserError(
            f"{checkpoint} lies beside a training that has not ended, {training_path(pool, name).name}: "
            "remove the one that you do not want"
        )


def check_trained_with(pool: Path, record: Mapping, settings: Mapping[str, object]) -> None:
    """UserError if a teacher of this project was trained with other settings than those asked for.

    Nothing is asked of a downloaded one.
    """
    if "settings" in record and (found := differences(record["settings"], settings)):
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
