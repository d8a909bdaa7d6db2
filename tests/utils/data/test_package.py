"""The folder in which a set travels: there and back byte for byte, what is damaged, and the Hub."""

import json
import os
import shutil
from functools import partial

import huggingface_hub
import pytest

from tests.distilled_sets import CELL, NAMES, config_at, images_of, labels_of, make_set, result_of
from utils.data.export import main as export
from utils.data.package import labels_by_name, pull, unpack
from validate import validate


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    root = tmp_path_factory.mktemp("origin")
    with pytest.MonkeyPatch.context() as patch:
        config_at(patch, root)
        make_set(root)
        export(["fashion_mnist", "fadrm", "1", "--to", str(root / "set")])
    return root


@pytest.fixture
def package(origin, tmp_path):
    """A copy of the package that may be changed."""
    shutil.copytree(origin / "set", tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Another place, with real images alone."""
    config_at(monkeypatch, tmp_path / "there")
    return tmp_path / "there"


def change_manifest(package, **changes):
    manifest = json.loads((package / "manifest.json").read_text())
    (package / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_there_and_back(origin, there, contents, capsys):
    for words in ("", ", there already"):
        unpack(origin / "set", os.environ)
        images, labels = (result_of(origin)[f"{kind}_sha256"] for kind in ("images", "labels"))
        assert capsys.readouterr().out == (
            f"images: {images_of(there)}, sha256 {images}{words}\nlabels: {labels_of(there)}, sha256 {labels}{words}\n"
        )
    for place in (images_of, labels_of):
        assert contents(place(there)) == contents(place(origin)) and len(contents(place(there))) > 2
        told = json.loads((place(there) / "report.json").read_text())
        assert told == {**json.loads((place(origin) / "report.json").read_text()), "files": {}}
    validate.main([*CELL, "--workers", "0", "--seed", "0"])
    assert result_of(there)["images_sha256"] == result_of(origin)["images_sha256"]
    assert result_of(there)["labels_sha256"] == result_of(origin)["labels_sha256"]
    assert result_of(there)["top1"] == result_of(origin)["top1"]


def test_a_card_that_people_edited_and_hidden_files_do_not_count(package, there):
    (package / "README.md").write_text("mine")
    (package / ".gitattributes").write_text("* text")
    (package / ".cache").mkdir()
    (package / ".cache" / "state").write_text("of the Hub")
    unpack(package, os.environ)
    assert images_of(there).is_dir()


def other_byte(package, name):
    content = bytearray((package / name).read_bytes())
    content[-20] ^= 1
    (package / name).write_bytes(content)


PNG, EPOCH = "images/new004/class004_id000.png", "labels/epoch_00000.safetensors"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda package: other_byte(package, PNG), f"{PNG} is damaged"),
        (lambda package: other_byte(package, EPOCH), f"{EPOCH} is damaged"),
        (lambda package: (package / PNG).unlink(), f"{PNG} is missing"),
        (lambda package: (package / EPOCH).unlink(), f"{EPOCH} is missing"),
        (lambda package: shutil.copy(package / PNG, package / "images/new000/more.png"), "more.png does not belong"),
        (lambda package: (package / "manifest.json").unlink(), "has no manifest.json"),
        (lambda package: (package / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (partial(change_manifest, format_version=2), "has format 2, this version reads 1"),
        (partial(change_manifest, files=[]), "files is no dict"),
        (partial(change_manifest, dataset="mnist"), "unknown dataset 'mnist'"),
        (partial(change_manifest, ipc=2), "has 1 images a class, not 2"),
        (partial(change_manifest, images={"name": "a", "sha256": "0"}), "does not fit the images beside it"),
        (partial(change_manifest, labels={"name": "a", "sha256": "0"}), "does not fit the labels beside it"),
        (partial(change_manifest, classes=[*NAMES[1:], NAMES[0]]), "class 0 is '1_trouser' in"),
        (partial(change_manifest, classes=NAMES[1:]), "class 0 is '1_trouser' in"),
        (partial(change_manifest, classes=[1]), "classes[] is no str"),
    ],
)
def test_what_is_not_as_it_was_packed(package, there, refusal, harm, message):
    harm(package)
    assert message in refusal(lambda _: unpack(package, os.environ), [])
    assert not (there / "generated_data").exists()


@pytest.mark.parametrize("name", ["../../../elsewhere", "..", ".hidden", "/tmp/elsewhere"])
def test_names_of_folders_lead_nowhere_else(package, there, refusal, name):
    manifest = json.loads((package / "manifest.json").read_text())
    change_manifest(package, labels={**manifest["labels"], "name": name})
    assert "does not fit the labels" in refusal(lambda _: unpack(package, os.environ), [])
    assert not (there / "generated_data").exists()


def test_other_images_of_the_same_name_stay(package, there, refusal, contents):
    unpack(package, os.environ)
    shutil.copy(images_of(there) / "new000/class000_id000.png", images_of(there) / "new001/class001_id000.png")
    before = contents(there)
    assert "fadrm_ipc1 holds other images than" in refusal(lambda _: unpack(package, os.environ), [])
    assert contents(there) == before


def test_names_of_classes():
    assert labels_by_name(["b", "a"], ["a", "b"]) == [1, 0]
    assert labels_by_name(["Ankle boot", "T-shirt/top"], ["0_t-shirt-top", "1_ankle-boot"]) == [1, 0]
    assert labels_by_name(["1_x", "2_x"], ["1_x", "2_x"]) == [0, 1]
    assert labels_by_name(["a", "c"], ["a", "b"]) is None and labels_by_name(["a"], ["a", "b"]) is None


# The Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of one folder, and what it was asked to create."""
    created = []

    def upload_folder(repo_id, repo_type, folder_path):
        assert created[-1][0] == repo_id and repo_type == "dataset"
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)
        (tmp_path / "hub" / repo_id / ".gitattributes").touch()

    def snapshot_download(repo_id, repo_type, local_dir):
        assert repo_type == "dataset"
        shutil.copytree(tmp_path / "hub" / repo_id, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *repository, **how: created.append((*repository, how)))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return created


def test_to_the_hub_and_from_it(origin, hub, tmp_path, there, contents, monkeypatch):
    config_at(monkeypatch, origin)
    export(["fashion_mnist", "fadrm", "1", "--to", str(origin / "set"), "--push", "me/my-set"])
    assert hub == [("me/my-set", {"repo_type": "dataset", "private": True, "exist_ok": True})]
    config_at(monkeypatch, there)
    folder = pull("me/my-set", there / "downloads")
    assert folder == there / "downloads" / "me--my-set"
    unpack(folder, os.environ)
    assert contents(labels_of(there)) == contents(labels_of(origin))


def test_what_goes_wrong_at_the_hub_is_one_line(origin, hub, tmp_path, there, refusal, monkeypatch):
    def fail(*words, **more):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    line = refusal(lambda _: pull("me/my-set", there / "downloads"), [])
    assert "me/my-set could not be fetched (ConnectionError: no route to host): check the network" in line
    monkeypatch.setattr(huggingface_hub, "upload_folder", fail)
    config_at(monkeypatch, origin)
    words = ["fashion_mnist", "fadrm", "1", "--to", str(origin / "set"), "--push", "me/my-set"]
    assert "could not be uploaded to me/my-set (ConnectionError" in refusal(export, words)
