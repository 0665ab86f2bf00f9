"""A small network that imitates a classifier from its labels alone (Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, 2017).

Shape suffixes: N pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 256
"""Most pictures whose gradients are computed at a time."""


def network(classes: int, width: int, seed: int, like: Tensor) -> nn.Module:
    """Three strided convolutions and a linear layer, for pictures of any size; on the device and in the type of `like`, with weights drawn
    from the seed. Torch's global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        layers: list[nn.Module] = []
        for before, after in ((3, width), (width, 2 * width), (2 * width, 2 * width)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(2 * width * 16, classes))
    return net.to(like.device, like.dtype)


def train(net: nn.Module, picture_NCHW: Tensor, label_N: Tensor, epochs: int, lr: float, batch: int, draw: np.random.Generator) -> None:
    """Go on training with Adam on these labels, so many times over the pictures in an order of `draw`."""
    adam = torch.optim.Adam(net.parameters(), lr)
    weights = list(net.parameters())
    with torch.enable_grad():
        for _ in range(epochs):
            for at_B in torch.from_numpy(draw.permutation(len(picture_NCHW))).to(label_N.device).split(batch):
                loss = F.cross_entropy(net(centred(picture_NCHW[at_B])), label_N[at_B])
                for weight, gradient in zip(weights, torch.autograd.grad(loss, weights)):
                    weight.grad = gradient
                adam.step()


def centred(picture_NCHW: Tensor) -> Tensor:
    """Pixels of 0 … 1 as −1 … 1."""
    return 2 * picture_NCHW - 1


def augmented(net: nn.Module, picture_NCHW: Tensor, label_N: Tensor, lam: float) -> Tensor:
    """x + λ·sign ∂F_y(x)/∂x of each picture, cut to 0 … 1: F_y is the network's logit of the picture's label."""
    new = []
    for x_NCHW, y_N in zip(picture_NCHW.split(CHUNK), label_N.split(CHUNK)):
        with torch.enable_grad():
            x_NCHW = x_NCHW.detach().requires_grad_()
            own_N = net(centred(x_NCHW)).gather(1, y_N[:, None])
            (gradient_NCHW,) = torch.autograd.grad(own_N.sum(), x_NCHW)
        new.append((x_NCHW.detach() + lam * gradient_NCHW.sign()).clamp(0, 1))
    return torch.cat(new)
