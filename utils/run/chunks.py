"""Batch size for inference.

It follows from the network, the image size and the class of the device's memory, not from what happens to be free, so
that rounding is the same in every run.
"""

import torch
from torch import nn

# Bytes of a layer's output that keep a device busy: about what a CPU's last cache holds; of a GPU's memory a fraction
# that leaves room for the few outputs that live together.
CPU_BYTES, MPS_BYTES = 2**25, 2**28
CUDA_BYTES = ((60, 2**31), (20, 2**30), (0, 2**29))  # from so many GiB of memory on


def images_at_once(network: nn.Module, size: int) -> int:
    """How many images of `size` pixels a side go through a network together, on the device that it is on."""
    device = next(network.parameters()).device
    return max(1, bytes_at_once(device) // widest_output(network, size))


def bytes_at_once(device: torch.device) -> int:
    """Bytes that the widest layer's output may take on a device."""
    if device.type == "cuda":
        gibibytes = torch.cuda.get_device_properties(device).total_memory / 2**30
        return next(size for least, size in CUDA_BYTES if gibibytes >= least)
    return MPS_BYTES if device.type == "mps" else CPU_BYTES


@torch.no_grad()
def widest_output(network: nn.Module, size: int) -> int:
    """Bytes of one image in the largest output of a layer, in float32. The network is looked at in eval mode, by a
    forward of one blank image, and left as it was."""
    widest = 0

    def note(layer: nn.Module, inputs: object, output: object) -> None:
        nonlocal widest
        if isinstance(output, torch.Tensor):
            widest = max(widest, 4 * output.numel())

    was_training = {module: module.training for module in network.modules()}
    hooks = [module.register_forward_hook(note) for module in network.modules()]
    network.eval()(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    for hook in hooks:
        hook.remove()
    for module, training in was_training.items():
        module.training = training
    return widest
