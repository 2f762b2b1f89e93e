"""The adapter: a time-conditioned U-Net, image and t in, estimate of the clean image out.

No BatchNorm: the adapter answers each image alone, whatever else is in the batch.
Sizes follow the U-Nets that peers use at 32x32 (cold diffusion, Bansal et al. 2022).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of the U-Net; see UNET_SIZES for the named ones."""

    width: int = 16
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels at each resolution, as multiples of the width; each is half the resolution of the one before."""
    blocks: int = 1
    """Residual blocks at each resolution, on the way down and on the way up."""
    attention: bool = False
    """Self-attention at the lowest resolution."""
    output: Literal["residual", "sigmoid"] = "residual"
    """residual: the input plus a correction that starts at zero; sigmoid: an image of its own."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ValueError(f"adapter.width is {self.width}; it must be a multiple of 8")
        if not self.multipliers or min(self.multipliers) < 1 or self.blocks < 1:
            raise ValueError("adapter.multipliers and adapter.blocks must be at least 1")


UNET_SIZES: dict[str, UNetConfig] = {
    "tiny": UNetConfig(width=16, multipliers=(1, 2)),
    "small": UNetConfig(width=24, multipliers=(1, 2, 2)),
    "4M": UNetConfig(width=32, multipliers=(1, 2, 4), blocks=2),
    "9M": UNetConfig(width=64, multipliers=(1, 2, 2, 2), blocks=2, attention=True),
    "36M": UNetConfig(width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=True),
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation, shifted by the embedding of t."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.shift = nn.Linear(embedding, channels_out)
        self.norm_out = nn.GroupNorm(8, channels_out)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(
        self,
        features: Float[Tensor, "batch channels height width"],
        embedded: Float[Tensor, "batch embedding"],
    ) -> Float[Tensor, "batch other height width"]:
        hidden = self.conv_in(functional.silu(self.norm_in(features)))
        hidden = hidden + self.shift(embedded)[:, :, None, None]
        hidden = self.conv_out(functional.silu(self.norm_out(hidden)))
        return self.skip(features) + hidden


class SelfAttention(nn.Module):
    """Single-head self-attention over positions, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.project_in = nn.Conv2d(channels, 3 * channels, 1)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        query, key, value = (
            part.flatten(2).transpose(1, 2) for part in self.project_in(self.norm(features)).chunk(3, dim=1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return features + self.project_out(mixed.transpose(1, 2).reshape(features.shape))


class UNet(nn.Module):
    """f(x_t, t): images [batch, channel, height, width] in [0, 1] and t in 0..T to an estimate of x.

    The estimate is not clamped with a residual output and lies in (0, 1) with a sigmoid one. Any height and
    width: odd ones are halved upward and cropped on the way back.
    """

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * multiplier for multiplier in config.multipliers]
        embedding = 4 * config.width
        self.frequencies = config.width // 2
        self.embed = nn.Sequential(
            nn.Linear(config.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.head = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        current = widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(ResidualBlock(current, width, embedding))
                current = width
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
        self.middle = ResidualBlock(current, current, embedding)
        self.attention = SelfAttention(current) if config.attention else nn.Identity()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks):
                self.up.append(ResidualBlock(current + width, width, embedding))
                current = width
            if level:
                self.grow.append(nn.Conv2d(current, current, 3, padding=1))
        self.norm = nn.GroupNorm(8, current)
        self.tail = nn.Conv2d(current, channels, 3, padding=1)
        if config.output == "residual":
            nn.init.zeros_(self.tail.weight)
            nn.init.zeros_(self.tail.bias)  # pyright: ignore[reportArgumentType]

    def forward(
        self, images: Float[Tensor, "batch channel height width"], t: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        embedded = self.embed(_sinusoids(t, self.frequencies).to(images.dtype))
        blocks, levels = self.config.blocks, len(self.config.multipliers)
        features = self.head(2 * images - 1)
        skips = []
        for level in range(levels):
            for block in range(blocks):
                features = self.down[level * blocks + block](features, embedded)
                skips.append(features)
            if level < levels - 1:
                features = self.shrink[level](features)
        features = self.attention(self.middle(features, embedded))
        for level in range(levels):
            for block in range(blocks):
                features = self.up[level * blocks + block](torch.cat([features, skips.pop()], 1), embedded)
            if level < levels - 1:
                size = skips[-1].shape[-2:]
                features = self.grow[level](functional.interpolate(features, size=size, mode="nearest"))
        correction = self.tail(functional.silu(self.norm(features)))
        return images + correction if self.config.output == "residual" else torch.sigmoid(correction)


def _sinusoids(t: Int64[Tensor, " batch"], count: int) -> Float[Tensor, "batch embedding"]:
    """Sine and cosine of t at ``count`` frequencies from 1 to 1/1000: attacks have tens of steps, not thousands."""
    rates = torch.exp(torch.arange(count, device=t.device) * (-math.log(1000.0) / max(1, count - 1)))
    angles = t[:, None].float() * rates[None]
    return torch.cat([angles.sin(), angles.cos()], 1)
