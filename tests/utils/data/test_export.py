"""export: the folder that it writes, its card, and what DD-Ranking takes."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor

from tests.distilled_sets import FASHION, NAMES, STUDENT, config_at, images_of, labels_of, make_set, pixels, result_of
from utils.data.distilled import distilled_path, write_distilled
from utils.data.export import main

CELL = ["fashion_mnist", "fadrm", "1"]


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    root = tmp_path_factory.mktemp("origin")
    with pytest.MonkeyPatch.context() as patch:
        config_at(patch, root)
        make_set(root)
        yield root


@pytest.fixture
def copied(origin, tmp_path, monkeypatch):
    """The same to be changed."""
    shutil.copytree(origin, tmp_path / "copied")
    config_at(monkeypatch, tmp_path / "copied")
    return tmp_path / "copied"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_package_has_every_file_and_its_digest(origin, tmp_path, capsys):
    main([*CELL, "--to", str(tmp_path / "set")])
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    found = {path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert manifest["files"] == {
        name: sha256(tmp_path / "set" / name) for name in found - {"manifest.json", "README.md"}
    }
    for label in range(10):
        name = f"new{label:03d}/class{label:03d}_id000.png"
        assert sha256(images_of(origin) / name) == manifest["files"][f"images/{name}"]
    stored = {path.name for path in labels_of(origin).iterdir()}
    assert {name.removeprefix("labels/") for name in found if name.startswith("labels/")} == stored
    assert manifest["labels"] == {"name": "fadrm_bs10_ipc1", "sha256": sha256(labels_of(origin) / "manifest.json")}
    assert manifest["images"]["sha256"] == result_of(origin)["images_sha256"]
    assert manifest["classes"] == NAMES
    assert all(path.is_dir() for path in (tmp_path / "set" / "images").iterdir())  # as ImageFolder wants it
    assert manifest["labels"]["sha256"] in capsys.readouterr().out
    assert not any(str(origin) in (tmp_path / "set" / name).read_text(errors="replace") for name in found)


def test_the_columns_are_those_that_other_tools_read(origin, tmp_path):
    main([*CELL, "--to", str(tmp_path / "set"), "--labels", "none"])
    rows = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert [row["class_id"] for row in rows] == [row["label"] for row in rows] == list(range(10))
    assert [row["class_name"] for row in rows] == NAMES
    assert all((tmp_path / "set" / row["file_name"]).is_file() for row in rows)
    assert not (tmp_path / "set" / "labels").exists()


def test_hugging_face_reads_it(origin, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    main([*CELL, "--to", str(tmp_path / "set")])
    for words, place in ((["imagefolder"], {"data_dir": str(tmp_path / "set")}), ([str(tmp_path / "set")], {})):
        rows = datasets.load_dataset(*words, **place, cache_dir=str(tmp_path / "cache"))["train"]
        assert rows["class_id"][:] == rows["label"][:] == list(range(10)) and rows[3]["image"].size == (32, 32)


def test_the_card(origin, tmp_path):
    main([*CELL, STUDENT, "--to", str(tmp_path / "set")])
    _, header, text = (tmp_path / "set" / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == "mit" and header["size_categories"] == ["n<1K"]
    assert {"dataset-distillation", "ipc-1"} <= set(header["tags"])
    teacher = origin / "pretrained_models" / "fashion_mnist_pretrained_models" / "ConvNetBN_W64.safetensors"
    assert f"| ConvNetBN_W64 | 1.0 | `{sha256(teacher)}` |" in text
    top1 = np.array([result_of(origin, seed)["top1"] for seed in range(3)])
    assert f"| {STUDENT} | views | 1 | 3 | {top1.mean():.2f} ± {top1.std(ddof=1):.2f} |" in text
    assert '"alpha": 0.5' in text and "3 s on cpu, torch 2.9" in text and "Fashion-MNIST: MIT" in text
    assert f"validate.validate --dataset-name fashion_mnist --recipe fadrm --ipc 1 --model {STUDENT}\n" in text


def test_a_seed_counts_once_and_other_settings_are_another_row(copied, tmp_path):
    results = copied / "generated_data" / "validate_output" / "fashion_mnist"
    (folder,) = results.iterdir()
    shutil.copytree(folder, results / "the same under another name")
    shutil.copytree(folder / "seed1", results / "other" / "seed1")
    changed = {**result_of(copied, 1), "top1": 12.5}
    changed["settings"]["adamw_lr"] = 0.5
    (results / "other" / "seed1" / "result.json").write_text(json.dumps(changed))
    main([*CELL, "--to", str(tmp_path / "set")])
    rows = [
        line for line in (tmp_path / "set" / "README.md").read_text().splitlines() if line.startswith(f"| {STUDENT}")
    ]
    assert [row.split(" | ")[3] for row in rows] == ["3", "1"] and rows[1].endswith("| 12.50 |")


def test_results_on_other_labels_are_not_on_the_card(origin, tmp_path):
    main([*CELL, "--to", str(tmp_path / "set"), "--labels", "fixed"])
    text = (tmp_path / "set" / "README.md").read_text()
    assert "| none here |" in text and "--ipc 1 --labels fixed --model" in text


def test_a_folder_with_the_same_set_is_taken_and_another_refused(origin, tmp_path, refusal):
    words = [*CELL, "--to", str(tmp_path / "set")]
    main(words)
    before = (tmp_path / "set" / "manifest.json").stat().st_mtime_ns
    main(words)
    assert (tmp_path / "set" / "manifest.json").stat().st_mtime_ns == before
    assert "holds another set" in refusal(main, [*words, "--labels", "fixed"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fashion_mnist fadrm 2", "fadrm_ipc2 is missing"),
        ("fashion_mnist fadrm 1 --draw 3", "fadrm_ipc1_draw3 is missing"),
        ("fashion_mnist fadrm 1 --images random", "random_ipc1 is missing"),
        ("fashion_mnist nothing 1", "no recipe for the method 'nothing'"),
        ("mnist fadrm 1", "unknown dataset 'mnist'"),
        ("fashion_mnist fadrm 1 --as ddranking --push me/set", "--push uploads a package"),
    ],
)
def test_what_cannot_be_exported(origin, tmp_path, refusal, words, message):
    assert message in refusal(main, [*words.split(), "--to", str(tmp_path / "set")])
    assert not list(tmp_path.iterdir())


def test_labels_must_be_there_and_of_these_images(copied, tmp_path, refusal):
    words = [*CELL, "--to", str(tmp_path / "set")]
    labels_of(copied).rename(tmp_path / "away")
    assert "fadrm_bs10_ipc1 is no finished label store" in refusal(main, words)
    (tmp_path / "away").rename(labels_of(copied))
    write_distilled([distilled_path(images_of(copied), 10, 3, 0)], pixels(1), "digest")
    assert "are for images sha256" in refusal(main, words)
    assert not (tmp_path / "set").exists()


def test_an_error_on_the_way_leaves_nothing(origin, tmp_path, small_disk, refusal):
    small_disk(1000)
    assert "no space for" in refusal(main, [*CELL, "--to", str(tmp_path / "set")])
    assert "no space for" in refusal(main, [*CELL, "--to", str(tmp_path / "set"), "--as", "ddranking"])
    assert not list(tmp_path.iterdir())


# DD-Ranking


@pytest.fixture
def for_ddranking(origin, tmp_path):
    main([*CELL, "--to", str(tmp_path / "dd"), "--as", "ddranking"])
    return tmp_path / "dd"


def test_what_ddranking_takes(origin, for_ddranking):
    load = {
        name: torch.load(for_ddranking / f"{name}.pt", weights_only=True)
        for name in ("images", "labels", "hard_labels")
    }
    assert torch.equal(load["hard_labels"], torch.arange(10)) and load["hard_labels"].dtype == torch.int64
    assert torch.allclose(load["images"], (pixels(10).float() / 255 - 0.5) / 0.5, atol=1e-6)
    epoch = safetensors.torch.load_file(labels_of(origin, "fadrm_fixed_bs10_ipc1") / "epoch_00000.safetensors")
    for place, image in enumerate(epoch["order"].tolist()):
        assert torch.equal(load["labels"][image], epoch["logits"][place].float())
    folder = ImageFolder(for_ddranking / "images", Compose([ToTensor(), Normalize(FASHION.mean, FASHION.std)]))
    assert folder.classes == [f"{label:05d}" for label in range(10)] and folder.targets == list(range(10))
    assert torch.allclose(torch.stack([image for image, _ in folder]), load["images"], atol=1e-6)


def test_without_fixed_labels_it_says_so(copied, tmp_path, capsys):
    shutil.rmtree(labels_of(copied, "fadrm_fixed_bs10_ipc1"))
    main([*CELL, "--to", str(tmp_path / "dd"), "--as", "ddranking"])
    assert "note: no labels.pt: there are no fixed labels in" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "dd").iterdir()) == ["hard_labels.pt", "images", "images.pt"]


def test_ddranking_trains_on_it(for_ddranking):
    """Its own loop, for three epochs, on the tensors and on the folders."""
    metrics = pytest.importorskip("ddranking.metrics", reason="ddranking 0.2.0 is not installed")
    from ddranking.utils import TensorDataset, build_model

    images, labels = (torch.load(for_ddranking / f"{name}.pt", weights_only=True) for name in ("images", "hard_labels"))
    transform = Compose([ToTensor(), Normalize(FASHION.mean, FASHION.std)])
    test = torch.utils.data.DataLoader(TensorDataset(images, labels), batch_size=5)
    run = SimpleNamespace(
        use_dist=False,
        custom_train_trans=transform,
        syn_batch_size=5,
        num_workers=0,
        optimizer="sgd",
        lr_scheduler="cosine",
        step_size=1,
        weight_decay=0.0,
        momentum=0.9,
        num_epochs=3,
        aug_func=None,
        test_interval=1,
        test_loader_syn=test,
        device="cpu",
        class_map={label: label for label in range(10)},
    )
    for tensor, path in ((images, None), (None, str(for_ddranking / "images"))):
        network = build_model("ConvNet-3", num_classes=10, im_size=(32, 32), use_torchvision=False, device="cpu")
        compute = metrics.LabelRobustScoreHard._compute_hard_label_metrics
        assert 0 <= compute(run, network, tensor, path, 0.01, labels, mode="syn") <= 100


def test_rethinkdc_reads_it(origin, tmp_path):
    reader = pytest.importorskip("rethinkdc.imagenet_ipc", reason="rethinkdc 0.3.2 is not installed")
    main([*CELL, "--to", str(tmp_path / "set")])
    classes = {f"new{label:03d}": label for label in range(10)}
    found = reader.make_dataset(str(tmp_path / "set" / "images"), classes, (".png",), image_number=1)
    assert [label for _, label in found] == list(range(10))
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert [reader.HFDatasetAdapter(rows)[place][1] for place in range(10)] == list(range(10))
