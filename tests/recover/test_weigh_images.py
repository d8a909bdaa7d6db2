"""Weights of distilled images: the mass of real ones that each stands for, where they go, what is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from models.checkpoints import load_teacher, save_state
from models.registry import build_network
from recover.weigh_images import cluster_weights, main
from utils import recipes
from utils.data.distilled import distilled_path, read_distilled, read_weights, weights_path, write_distilled
from utils.data.images import images_digest, list_images, load_images, normalise
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.files import sha256_of

FASHION = get_dataset("fashion_mnist")
OBSERVER = "ConvNetBN_W32"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The flags of a run over three distilled images of each class and, in class c, 4 + c real ones."""
    monkeypatch.setenv("Main_Data_Path", str(tmp_path / "all"))
    torch.manual_seed(0)
    save_state(tmp_path / "pool" / f"{OBSERVER}.safetensors", build_network(OBSERVER, FASHION))
    for class_index in range(10):
        (tmp_path / "train" / f"{class_index}").mkdir(parents=True)
        for index in range(4 + class_index):
            pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "train" / f"{class_index}" / f"{index:02d}.png")
    paths = [distilled_path(tmp_path / "images", 10, label, ipc_id) for label in range(10) for ipc_id in range(3)]
    write_distilled(paths, torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8), "anything")
    words = f"--dataset-name fashion_mnist --train-dir {tmp_path}/train --syn-data-path {tmp_path}/images --device cpu"
    return [*words.split(), "--observer", OBSERVER, "--model-pool-dir", str(tmp_path / "pool")]


def digest_of(folder):
    return images_digest(*read_distilled(folder, FASHION)[:2])


def test_a_weight_is_the_share_of_the_class_times_ipc():
    distilled = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    real = F.normalize(torch.tensor([[5.0, 1.0], [2.0, 1.0], [1.0, 9.0], [1.0, -1.0]]))
    assert cluster_weights(real, distilled).tolist() == [3 / 4 * 3, 1 / 4 * 3, 0]
    assert cluster_weights(F.normalize(torch.ones(2, 2)), distilled).tolist() == [3, 0, 0]  # a tie


def test_weights_are_those_of_the_plain_count(command, tmp_path, contents, capsys):
    before = contents(tmp_path / "images")
    main(command)
    network = load_teacher(OBSERVER, FASHION, tmp_path / "pool").module
    images, labels, _ = read_distilled(tmp_path / "images", FASHION)
    real, real_labels = list_images(tmp_path / "train", FASHION)
    real = load_images(real, FASHION)
    seen = []
    hook = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1]
    hook.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for pixels in (images, real):
        network(normalise(pixels, FASHION))
    counts = [0] * 30
    for place, label in enumerate(real_labels.tolist()):
        own = [number for number in range(30) if labels[number] == label]
        alike = [F.cosine_similarity(seen[1][place], seen[0][number], dim=0).item() for number in own]
        counts[own[alike.index(max(alike))]] += 1
    weights, digest = read_weights(tmp_path / "images", digest_of(tmp_path / "images"), 30)
    assert weights.tolist() == pytest.approx([3 * count / (4 + place // 3) for place, count in enumerate(counts)])
    assert weights.view(10, 3).mean(dim=1).tolist() == pytest.approx([1] * 10)
    path = weights_path(tmp_path / "images")
    record = json.loads(path.read_text())
    assert digest == sha256_of(path)
    assert (record["observer"], record["train_images"]) == (OBSERVER, 85)
    assert record["observer_sha256"] == sha256_of(tmp_path / "pool" / f"{OBSERVER}.safetensors")
    after = contents(tmp_path / "images")
    assert {name: after[name] for name in before} == before and after.keys() - before.keys() == {"weights.json"}
    capsys.readouterr()
    main(command)
    assert "weigh: everything was there already" in capsys.readouterr().out


def test_a_recipe_names_folder_and_observer(tmp_path, monkeypatch):
    for name in ("Main_Data_Path", "train_dir", "patch_dir"):
        monkeypatch.setenv(name, f"/{name}")
    words = ["--dataset-name", "fashion_mnist", "--recipe", "fadrm:alpha=0.6", "--ipc", "10"]
    settings = recipes.parse("weigh", words)
    recovered = recipes.parse("recover", words)
    assert settings.syn_data_path == recovered.syn_data_path / recovered.exp_name
    assert settings.observer == "ConvNetBN_W64" and settings.model_pool_dir == recovered.model_pool_dir
    chosen = recipes.parse("weigh", [*words, "--images", "random", "--draw", "2"]).syn_data_path
    assert chosen.name == "random_ipc10_draw2"


def test_what_cannot_be_weighed_is_refused(command, tmp_path):
    with pytest.raises(UserError, match=r"--ipc 4: .* has 3 images a class"):
        main([*command, "--ipc", "4"])
    main([*command, "--dry-run"])
    assert not weights_path(tmp_path / "images").exists()
    main(command)
    save_state(tmp_path / "pool" / "ConvNetBN_W64.safetensors", build_network("ConvNetBN_W64", FASHION))
    with pytest.raises(
        UserError, match=r'weights\.json has weights made with other settings: observer \("ConvNetBN_W32" th'
    ):
        main([*command, "--observer", "ConvNetBN_W64"])
    record = json.loads(weights_path(tmp_path / "images").read_text())
    for content, message in ((record | {"weights": None}, "weights is no list"), (None, "does not hold a JSON object")):
        weights_path(tmp_path / "images").write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"weights\.json .*{message}.*: remove it"):
            main(command)


def test_weights_that_do_not_fit_are_not_read(command, tmp_path):
    folder, digest = tmp_path / "images", digest_of(tmp_path / "images")
    with pytest.raises(UserError, match=r"weights\.json is missing: `python -m recover\.weigh_images` with"):
        read_weights(folder, digest, 30)
    main(command)
    for content in ((folder, "0" * 64, 30), (folder, digest, 31)):
        with pytest.raises(UserError, match=r"weights\.json has weights of other images than those that are there"):
            read_weights(*content)
    record = json.loads(weights_path(folder).read_text())
    weights_path(folder).write_text(json.dumps(record | {"weights": ["1"] * 30}))
    with pytest.raises(UserError, match=r"weights\.json is damaged \(weights\[\] is no number\): remove it"):
        read_weights(folder, digest, 30)
