"""The networks, their registry, their checkpoints and the training of teachers.

Importing the package registers every network: a new one is a file here and its line below.
"""

from models import convnet, densenet, mobilenetv2, resnet, shufflenetv2, torchvision, wideresnet

__all__ = ["convnet", "densenet", "mobilenetv2", "resnet", "shufflenetv2", "torchvision", "wideresnet"]
