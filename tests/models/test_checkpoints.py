"""Checkpoints: what loads, what is refused and in which words, and online weights from a filled cache folder."""

import os
import pickle
import urllib.request
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torchvision.models import get_model

from models.checkpoints import checkpoint_path, load_network, load_state, load_teacher, save_state
from models.registry import build_network
from models.torchvision import modern_names
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.files import sha256_of

GOLDEN = Path(__file__).parents[1] / "golden"
FASHION, CIFAR, IMAGENET = (get_dataset(name) for name in ("fashion_mnist", "cifar100", "imagenet1k"))


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def saved(tmp_path):
    """A pool with one small checkpoint, and its network."""
    network = build_network("ConvNetBN_W32", FASHION)
    torch.save(network.state_dict(), tmp_path / "ConvNetBN_W32.pth")
    return tmp_path, network


# What loads


@pytest.mark.parametrize("teacher", ["teacher_a", "teacher_b"])
def test_published_teachers_load_strictly_and_frozen(teacher):
    network = load_network("ShuffleNetV2", FASHION, GOLDEN / f"{teacher}.safetensors")
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(
        network.state_dict()["linear.bias"], load_state(GOLDEN / f"{teacher}.safetensors")["linear.bias"]
    )


def test_a_teacher_is_its_network_and_the_sum_of_its_file(saved):
    pool, network = saved
    teacher = load_teacher("ConvNetBN_W32", FASHION, pool)
    assert teacher.name == "ConvNetBN_W32" and teacher.sha256 == sha256_of(pool / "ConvNetBN_W32.pth")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher.module(images), network.eval()(images))


def test_loading_draws_no_random_numbers(saved):
    before = torch.get_rng_state()
    load_teacher("ConvNetBN_W32", FASHION, saved[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_safetensors_go_before_pth_and_timm_names_have_no_colon(saved):
    pool, network = saved
    assert checkpoint_path(pool, "ConvNetBN_W32") == pool / "ConvNetBN_W32.pth"
    save_state(pool / "ConvNetBN_W32.safetensors", network)
    assert checkpoint_path(pool, "ConvNetBN_W32") == pool / "ConvNetBN_W32.safetensors"
    assert checkpoint_path(pool, "timm:resnet18") is None
    (pool / "timm_resnet18.pth").touch()
    assert checkpoint_path(pool, "timm:resnet18") == pool / "timm_resnet18.pth"


def test_save_state_keeps_every_tensor_whatever_its_memory(tmp_path):
    network = build_network("ConvNetBN_W32", FASHION).to(memory_format=torch.channels_last)
    network.features[1].weight = network.features[5].weight  # shared memory
    path = tmp_path / "new" / "network.safetensors"
    save_state(path, network, {"top1": "51.0"})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    loaded = load_state(path)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"top1": "51.0"}


def test_checkpoints_without_batch_counters_load(saved):
    pool, network = saved
    old = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    torch.save(old, pool / "ConvNetBN_W32.pth")
    assert load_network("ConvNetBN_W32", FASHION, pool / "ConvNetBN_W32.pth").features[1].num_batches_tracked == 0


# What does not


def test_missing(tmp_path):
    with pytest.raises(UserError) as error:
        load_teacher("ResNet18", CIFAR, tmp_path)
    training = "`python -m models.pretrain --dataset-name cifar100 --model ResNet18` trains it"
    for words in (str(tmp_path / "ResNet18.safetensors"), "ResNet18.pth beside it", training):
        assert words in str(error.value)
    with pytest.raises(UserError, match=r"elsewhere\.pth is missing"):
        load_network("ResNet18", CIFAR, tmp_path / "elsewhere.pth")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated(saved, ending, kept):
    pool, network = saved
    path = pool / f"ConvNetBN_W32{ending}"
    if ending == ".safetensors":
        save_state(path, network)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=rf"{path.name} is damaged \(.*\): remove it, then train or download"):
        load_teacher("ConvNetBN_W32", FASHION, pool)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>not found</html>", "is a web page, not a checkpoint: download the file itself"),
        (b"\x80\x04garbage" * 40, "is damaged"),
        (b"PK\x03\x04" + b"x" * 400, "is damaged"),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_no_checkpoint_at_all(tmp_path, content, said, ending):
    path = tmp_path / f"ResNet18{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_state(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_before_it_does(tmp_path, legacy):
    path, made = tmp_path / "ResNet18.pth", tmp_path / "made"
    if legacy:
        path.write_bytes(pickle.dumps({"conv1.weight": Malicious(made)}))
    else:
        torch.save({"conv1.weight": Malicious(made)}, path)
    with pytest.raises(UserError, match="not a plain state dict"):
        load_teacher("ResNet18", CIFAR, tmp_path)
    assert not made.exists()
    if legacy:  # what this test wrote itself: it is what it claims to be
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert made.exists()


def test_prefixes_and_counters_of_tools_are_taken_off(tmp_path):
    state = build_network("ConvNetBN_W32", FASHION).state_dict()
    counted = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    counted |= {"total_ops": torch.zeros(1), "module._orig_mod.features.total_params": torch.zeros(1)}
    torch.save(counted, tmp_path / "ConvNetBN_W32.pth")
    found = load_state(tmp_path / "ConvNetBN_W32.pth")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("legacy", [False, True])
def test_tuples_that_hold_themselves_many_times_end_at_once(tmp_path, legacy):
    key = ()
    for _ in range(60):
        key = (key, key)

    class Key:  # a dict with the tuple as its key, which nobody can make by hashing it
        def __reduce__(self):
            return (OrderedDict, ([(key, 1)],))

    torch.save(Key(), tmp_path / "ConvNetBN_W32.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"is not a plain state dict \(tuples within tuples\)"):
        load_state(tmp_path / "ConvNetBN_W32.pth")


def test_shared_weights_are_no_tuples_in_tuples(tmp_path):
    weight = torch.randn(3, 3)
    torch.save({f"{place}": weight for place in range(100)}, tmp_path / "tied.pth")
    assert len(load_state(tmp_path / "tied.pth")) == 100


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ({"state_dict": {}, "epoch": 3}, "it holds 'state_dict'"),
        ({0: torch.zeros(2)}, "it holds 'a key of type int'"),
        ([torch.zeros(2)], "not a plain state dict:"),
    ],
)
def test_other_things_than_a_state_dict_are_refused(tmp_path, content, hint):
    torch.save(content, tmp_path / "ResNet18.pth")
    with pytest.raises(UserError, match=hint):
        load_state(tmp_path / "ResNet18.pth")


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(build_network("ConvNetBN_W32", FASHION), tmp_path / "ConvNetBN_W32.pth")
    with pytest.raises(UserError, match="not a plain state dict"):
        load_teacher("ConvNetBN_W32", FASHION, tmp_path)


def test_another_network(saved):
    pool, _ = saved
    path = pool / "ConvNetBN_W32.pth"
    with pytest.raises(
        UserError, match=r"not a checkpoint of WRN-16-2 .*missing \(first conv1.weight\).*unknown to it"
    ):
        load_network("WRN-16-2", FASHION, path)
    with pytest.raises(UserError, match=r"not a checkpoint of ConvNetBN_W64 .*have another shape \(first features.0"):
        load_network("ConvNetBN_W64", FASHION, path)


def test_another_class_count(saved):
    path = saved[0] / "ConvNetBN_W32.pth"
    with pytest.raises(UserError, match="trained for 10 classes, but cifar100 has 100"):
        load_network("ConvNetBN_W32", CIFAR, path)


def test_another_network_of_another_class_count_is_another_network(saved):
    with pytest.raises(UserError, match="not a checkpoint of ConvNetBN_W64"):
        load_network("ConvNetBN_W64", CIFAR, saved[0] / "ConvNetBN_W32.pth")


# Online


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache folder, empty, with no way to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.install_opener(None)  # the next request reads the proxies again
    yield tmp_path / "hub" / "checkpoints"
    urllib.request.install_opener(None)


def old_densenet_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As in the file that torchvision still offers: `norm.1` for `norm1` in dense layers, no batch counters."""
    old = {}
    for name, tensor in state.items():
        if "num_batches_tracked" not in name:
            if ".denselayer" in name:
                for kind in ("norm", "conv"):
                    name = name.replace(f".{kind}1.", f".{kind}.1.").replace(f".{kind}2.", f".{kind}.2.")
            old[name] = tensor
    return old


@pytest.mark.parametrize(
    ("name", "architecture", "file", "as_stored"),
    [
        ("ShuffleNetV2", "shufflenet_v2_x1_0", "shufflenetv2_x1-5666bf0f80.pth", dict),
        ("Densenet121", "densenet121", "densenet121-a639ec97.pth", old_densenet_names),
    ],
)
def test_online_weights_come_from_the_cache(cache, name, architecture, file, as_stored):
    network = get_model(architecture, weights=None)
    cache.mkdir(parents=True)
    torch.save(as_stored(network.state_dict()), cache / file)
    teacher = load_teacher(name, IMAGENET, cache / "no pool", source="online")
    assert teacher.sha256 == sha256_of(cache / file)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(teacher.module(images), network.eval()(images))
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())


def test_a_densenet_of_old_names_loads_from_a_pool_too(tmp_path):
    network = get_model("densenet121", weights=None, num_classes=10)
    old = old_densenet_names(network.state_dict())
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert set(modern_names(old)) == {name for name in network.state_dict() if "num_batches_tracked" not in name}
    torch.save(old, tmp_path / "Densenet121.pth")
    load_teacher("Densenet121", get_dataset("imagewoof"), tmp_path)


def test_a_failed_download_names_the_cache_folder(cache):
    with pytest.raises(UserError) as error:
        load_teacher("ResNet18", IMAGENET, cache, source="online")
    assert "could not download" in str(error.value) and str(cache) in str(error.value)
    assert not any(cache.iterdir())


def test_a_damaged_file_in_the_cache_is_named(cache):
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth is damaged \(.*: remove it"):
        load_teacher("ResNet18", IMAGENET, cache, source="online")


@pytest.mark.parametrize("name", ["ResNet18", "timm:resnet18"])
def test_online_is_for_imagenet1k_only(name):
    with pytest.raises(UserError, match="online weights are of ImageNet-1k's classes, not of imagewoof's"):
        load_teacher(name, get_dataset("imagewoof"), Path("nowhere"), source="online")
