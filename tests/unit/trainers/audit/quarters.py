"""A small problem for attacks: pictures whose class is their brighter quarter, and a network that learns it."""

import torch
from torch import nn

from datasets.seeding import rng
from trainers.audit.classifier import Classifier

SIDE, CLASSES = 8, 4


def network() -> Classifier:
    """A small convolutional network, trained for a moment on pictures whose class is the brightest quarter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 16, CLASSES)).double()
    picture, label = quarters(200)
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(net(picture), label).backward()
        adam.step()
    net.requires_grad_(False)
    return Classifier(lambda picture_BCHW, _: net(picture_BCHW), CLASSES, dtype=torch.float64)


def quarters(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = rng("quarters", count)
    label = draw.integers(0, CLASSES, count)
    picture = 0.3 + 0.2 * draw.random((count, 3, SIDE, SIDE))
    for number, quarter in enumerate(label):
        row, column = divmod(int(quarter), 2)
        picture[number, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.15
    return torch.from_numpy(picture), torch.from_numpy(label)
