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

from stages.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of the U-Net; see UNET_SIZES for the named ones."""

    width: int = 16
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels at each resolution, as multiples of the width; each is half the resolution of the one before."""
    blocks: int = 1
    """Residual blocks at each resolution on the way down."""
    all_skips: bool = True
    """Pass every feature map across, as DDPM does: one more block at each resolution on the way up, and in the middle.
    Otherwise only those of the blocks, which is a third cheaper."""
    attention: int | None = None
    """Resolution, counted from 0 for the highest, that has self-attention (at 32x32, 1 is 16x16); so has the middle."""
    patch: int = 1
    """Side of the square of pixels that is folded into channels at the input and unfolded at the output."""
    output: Literal["residual", "sigmoid"] = "residual"
    """residual: the input plus a correction that starts at zero; sigmoid: an image of its own."""

    def __post_init__(self) -> None:
        check_settings(self, "adapter")
        if self.width < 8 or self.width % 8:
            raise ValueError(f"adapter.width is {self.width}; it must be a multiple of 8")
        if not self.multipliers or min(self.multipliers) < 1 or self.blocks < 1 or self.patch < 1:
            raise ValueError("adapter.multipliers, adapter.blocks and adapter.patch must be at least 1")
        if self.attention is not None and not 0 <= self.attention < len(self.multipliers):
            raise ValueError(
                f"adapter.attention is {self.attention}; the resolutions are 0 to {len(self.multipliers) - 1}, as many "
                "as adapter.multipliers"
            )


# 9M and 36M are the U-Net of DDPM for CIFAR-10 (Ho et al. 2020) at half and at full width; 11M has as many parameters
# and operations as a ResNet-18 (1.12 and 1.11 GFLOP an image of 32x32), in few, wide layers that fill a GPU.
UNET_SIZES: dict[str, UNetConfig] = {
    "flat": UNetConfig(width=16, multipliers=(1,), all_skips=False),
    "flat-half": UNetConfig(width=32, multipliers=(1,), all_skips=False, patch=2),
    "tiny": UNetConfig(width=16, multipliers=(1, 2), all_skips=False),
    "tiny-half": UNetConfig(width=16, multipliers=(1, 2), all_skips=False, patch=2),
    "small": UNetConfig(width=32, multipliers=(1, 2, 2), patch=2),
    "4M": UNetConfig(width=64, multipliers=(1, 2, 2), blocks=1),
    "11M": UNetConfig(width=128, multipliers=(1, 2, 2), all_skips=False, patch=2),
    "9M": UNetConfig(width=64, multipliers=(1, 2, 2, 2), blocks=2, attention=1),
    "36M": UNetConfig(width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=1),
}


class GroupNorm(nn.GroupNorm):
    """Group normalisation that stays in the precision of its input; its sums are float32 in any case.

    Autocast would turn the features into float32 and back, which moves three times the memory.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(8, channels)

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        if input.dtype == self.weight.dtype:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return functional.group_norm(input, self.num_groups, weight, bias, self.eps)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation, shifted by the embedding of t."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = GroupNorm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.shift = nn.Linear(embedding, channels_out)
        self.norm_out = GroupNorm(channels_out)
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
        self.norm = GroupNorm(channels)
        self.project_in = nn.Conv2d(channels, 3 * channels, 1)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        query, key, value = (  # with an axis for the one head: without it PyTorch takes no fused kernel
            part.flatten(2).transpose(1, 2)[:, None] for part in self.project_in(self.norm(features)).chunk(3, dim=1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)[:, 0]
        return features + self.project_out(mixed.transpose(1, 2).reshape(features.shape))


class Stage(nn.Module):
    """A residual block, with self-attention behind it where asked for."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, *, attend: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(channels_in, channels_out, embedding)
        self.attention = SelfAttention(channels_out) if attend else nn.Identity()

    def forward(
        self,
        features: Float[Tensor, "batch channels height width"],
        embedded: Float[Tensor, "batch embedding"],
    ) -> Float[Tensor, "batch other height width"]:
        return self.attention(self.block(features, embedded))


class UNet(nn.Module):
    """f(x_t, t): images [batch, channel, height, width] in [0, 1] and t in 0..T to an estimate of x.

    The estimate is not clamped with a residual output and lies in (0, 1) with a sigmoid one. Any height and
    width that the patch divides: odd ones are halved upward and cropped on the way back.
    """

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * multiplier for multiplier in config.multipliers]
        embedding = 4 * config.width
        self.embed = nn.Sequential(nn.Linear(config.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.head = nn.Conv2d(channels * config.patch**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        extra = int(config.all_skips)
        current, skips = widths[0], [widths[0]] * extra
        for level, width in enumerate(widths):
            stages = [
                Stage(current if block == 0 else width, width, embedding, attend=self._attends(level))
                for block in range(config.blocks)
            ]
            shrink = nn.Conv2d(width, width, 3, stride=2, padding=1) if level < len(widths) - 1 else None
            self.down.append(nn.ModuleList([*stages, *([shrink] if shrink else [])]))
            current = width
            skips += [width] * (config.blocks + extra * (shrink is not None))
        self.middle = nn.ModuleList(
            Stage(current, current, embedding, attend=block == 0 and config.attention is not None)
            for block in range(1 + extra)
        )
        for level, width in reversed(list(enumerate(widths))):
            stages = []
            for _ in range(config.blocks + extra):
                stages.append(Stage(current + skips.pop(), width, embedding, attend=self._attends(level)))
                current = width
            grow = nn.Conv2d(width, width, 3, padding=1) if level else None
            self.up.append(nn.ModuleList([*stages, *([grow] if grow else [])]))
        self.norm = GroupNorm(current)
        self.tail = nn.Conv2d(current, channels * config.patch**2, 3, padding=1)
        if config.output == "residual":
            nn.init.zeros_(self.tail.weight)
            if self.tail.bias is not None:
                nn.init.zeros_(self.tail.bias)

    def _attends(self, level: int) -> bool:
        return self.config.attention is not None and level == self.config.attention

    def forward(
        self, images: Float[Tensor, "batch channel height width"], t: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        embedded = self.embed(_sinusoids(t, self.config.width // 2).to(images.dtype))
        features = self.head(functional.pixel_unshuffle(2 * images - 1, self.config.patch))
        skips = [features] if self.config.all_skips else []
        for level in self.down:
            for layer in level:  # pyright: ignore[reportGeneralTypeIssues]
                features = layer(features, embedded) if isinstance(layer, Stage) else layer(features)
                if self.config.all_skips or isinstance(layer, Stage):
                    skips.append(features)
        for stage in self.middle:
            features = stage(features, embedded)
        for level in self.up:
            for layer in level:  # pyright: ignore[reportGeneralTypeIssues]
                if isinstance(layer, Stage):
                    features = layer(torch.cat([features, skips.pop()], 1), embedded)
                else:
                    # convolved before it is enlarged, for a quarter of the work
                    features = functional.interpolate(layer(features), size=skips[-1].shape[-2:], mode="nearest")
        correction = functional.pixel_shuffle(self.tail(functional.silu(self.norm(features))), self.config.patch)
        if self.config.output == "residual":
            return images + correction
        # near 1, bfloat16 knows multiples of 1/256 only; float64 stays, in which gradients are checked
        return torch.sigmoid(correction.to(torch.promote_types(correction.dtype, torch.float32)))


def _sinusoids(t: Int64[Tensor, " batch"], count: int) -> Float[Tensor, "batch embedding"]:
    """Sine and cosine of t at ``count`` frequencies from 1 to 1/1000: attacks have tens of steps, not thousands."""
    rates = torch.exp(torch.arange(count, device=t.device) * (-math.log(1000.0) / max(1, count - 1)))
    angles = t[:, None].float() * rates[None]
    return torch.cat([angles.sin(), angles.cos()], 1)
