"""The layers that small-image networks share."""

import torch
from torch import nn

from models.layers import conv1x1, conv3x3, depthwise3x3, pool_globally, projection


def test_convolutions_keep_or_halve_the_sides_and_have_no_bias():
    images = torch.randn(2, 6, 8, 8)
    for stride, side in ((1, 8), (2, 4)):
        assert conv1x1(6, 5, stride)(images).shape == (2, 5, side, side)
        assert conv3x3(6, 5, stride)(images).shape == (2, 5, side, side)
        assert depthwise3x3(6, stride)(images).shape == (2, 6, side, side)
        assert projection(6, 5, stride)(images).shape == (2, 5, side, side)
    assert all(layer.bias is None for layer in (conv1x1(6, 5), conv3x3(6, 5), depthwise3x3(6)))
    assert depthwise3x3(6).weight.shape == (6, 1, 3, 3)


def test_a_projection_is_a_convolution_and_a_batch_norm():
    convolution, norm = projection(6, 5)
    assert convolution.kernel_size == (1, 1) and isinstance(norm, nn.BatchNorm2d) and norm.num_features == 5


def test_global_pooling_is_the_mean_over_space():
    features = torch.arange(16.0).view(1, 2, 2, 4)
    assert pool_globally(features).tolist() == [[3.5, 11.5]]
