"""A small network with what plugins trip over."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """A convolutional network of a few thousand weights with what techniques trip over.

    Functional and module ReLUs, in place and reused ones, batch normalisation, max pooling and a linear head.
    """

    def __init__(self, *, channels: int = 3, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, classes)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * (0.3 if parameter.dim() > 1 else 0.1))
            self.norm1.weight.add_(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        x = self.relu(self.conv2(x))
        x = torch.relu(self.conv3(x) + x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
