"""A U-Net of the usual CARE kind, for comparison, and what networks cost: parameters and multiply-adds a pixel.

Invariant: the layers are those of CSBDeep's `unet_block` with its defaults (depth 2, 32 first filters, two convolutions
a level, ReLU, max pooling, nearest upsampling, skips by concatenation, a linear 1x1 and the input added at the end, no
normalisation layers), here with 3x3 kernels; CSBDeep's own default in 2-D is 5x5, `UNet(kernel=5)`.
Multiply-adds are counted where they happen: every two-dimensional convolution that is run, also those of fixed filters
and those that are no `nn.Conv2d`.

    python examples/evaluation/unet.py -o results/cost

Sources: Ronneberger, Fischer, Brox 2015 (MICCAI, LNCS 9351), the U-Net; Weigert et al. 2018 (Nat. Methods 15, 1090),
CARE; CSBDeep (BSD-3-Clause), csbdeep/internals/blocks.py and csbdeep/models/config.py, read for the layout alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class UNet(nn.Module):
    """(N, 1, H, W) -> (the restored image (N, 1, H, W),): one scale; any size from 16 px on."""

    architecture: ClassVar[str] = "unet"

    def __init__(self, depth: int = 2, first: int = 32, kernel: int = 3) -> None:
        super().__init__()
        self.depth, self.first, self.kernel = depth, first, kernel
        widths = [first * 2**level for level in range(depth + 1)]
        before = [1, *widths]
        self.down = nn.ModuleList(self._pair(before[n], widths[n], widths[n]) for n in range(depth))
        self.middle = self._pair(widths[depth - 1], widths[depth], widths[depth - 1])
        self.up = nn.ModuleList(self._pair(2 * widths[n], widths[n], widths[max(0, n - 1)]) for n in range(depth))
        self.last = nn.Conv2d(first, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as Keras begins
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.alignment_px = 2**depth
        self.receptive_radius_px: int = self._radius()
        self.default_halo_px: int = -(-self.receptive_radius_px // self.alignment_px) * self.alignment_px

    def _pair(self, channels_in: int, middle: int, channels_out: int) -> nn.Sequential:
        first, second = (
            nn.Conv2d(a, b, self.kernel, padding="same") for a, b in ((channels_in, middle), (middle, channels_out))
        )
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))

    def _radius(self) -> int:
        """Two convolutions down and two up at each level, two in the middle, and the pooling's own reach."""
        reach = self.kernel // 2
        deepest = int(2**self.depth)
        levels = sum(4 * reach * (1 << n) + (1 << n) for n in range(self.depth))
        return levels + 2 * reach * deepest + deepest

    @property
    def settings_dict(self) -> dict[str, Any]:
        """Constructor settings."""
        return {"depth": self.depth, "first": self.first, "kernel": self.kernel}

    def forward(self, image_nchw: Tensor) -> tuple[Tensor]:
        """Sizes that the pooling does not divide are continued by reflection and cut again."""
        height, width = image_nchw.shape[-2:]
        x = F.pad(image_nchw, (0, -width % self.alignment_px, 0, -height % self.alignment_px), mode="reflect")
        layer, skips = x, []
        for down in self.down:
            skips.append(down(layer))
            layer = F.max_pool2d(skips[-1], 2)
        layer = self.middle(layer)
        for level in reversed(range(self.depth)):
            larger = F.interpolate(layer, scale_factor=2.0, mode="nearest")
            layer = self.up[level](torch.cat([larger, skips[level]], dim=1))
        restored: Tensor = x + self.last(layer)
        return (restored[..., :height, :width],)

    def pyramid(self, image_nchw: Tensor) -> tuple[Tensor]:
        """The training target: the image at the one scale of the output."""
        return (image_nchw,)


class _Counter(TorchFunctionMode):
    """Counts the multiply-adds of every two-dimensional convolution that is called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.total: int = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (F.conv2d, torch.conv2d):
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            self.total += int(result.numel() * weight[0].numel())
        elif func in (F.conv_transpose2d, torch.conv_transpose2d):
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            self.total += int(args[0].numel() * weight[0].numel())
        return result


@torch.no_grad()
def multiply_adds_a_pixel(network: nn.Module, size_px: int = 256) -> float:
    """Of the convolutions, for each pixel of the input; margins that a network adds at image borders left out."""
    image = torch.zeros(1, 1, size_px, size_px)
    counter = _Counter()
    with counter:
        if getattr(network, "architecture", None) == "mrbcr":
            network(image, (False,) * 4)
        else:
            network(image)
    return counter.total / (size_px * size_px)


def parameter_count(network: nn.Module) -> int:
    """Of everything that is trained."""
    return sum(p.numel() for p in network.parameters())


@dataclass(frozen=True)
class Cost:
    """What a network is made of."""

    name: str
    parameters: int
    multiply_adds_a_pixel: float


def costs() -> list[Cost]:
    """The three networks that are compared."""
    from mrbcr_cli.network.mrbcr import Mrbcr
    from mrbcr_cli.network.published import Published

    networks = {"mrbcr": Mrbcr(), "published": Published(), "unet 3x3": UNet(), "unet 5x5": UNet(kernel=5)}
    return [Cost(k, parameter_count(n), multiply_adds_a_pixel(n)) for k, n in networks.items()]


def main(argv: Sequence[str] | None = None) -> None:
    """See the module text."""
    import recording as rec
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description="Parameters and multiply-adds a pixel of the networks compared.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="stem of the .json, .md and .png")
    args = parser.parse_args(argv)
    found = costs()
    rows = [[c.name, f"{c.parameters:,}", f"{c.multiply_adds_a_pixel:,.0f}"] for c in found]
    text = rec.table(["network", "parameters", "multiply-adds a pixel"], rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rec.write_results(args.output, {"networks": [asdict(c) for c in found]}, text)
    fig = Figure(figsize=(4.5, 3.0), layout="constrained")
    axis = fig.subplots()
    axis.barh([c.name for c in found], [c.multiply_adds_a_pixel for c in found])
    axis.set(xscale="log", xlabel="multiply-adds a pixel")
    fig.savefig(args.output.with_suffix(".png"), dpi=110)
    print(text)


if __name__ == "__main__":
    main()
