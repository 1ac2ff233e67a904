"""A trained network into a larger one of its kind.

Invariant: what comes out computes what went in, up to rounding, for residual pairs and guide features that are new
begin without effect. Only a guide that is asked to have fewer features loses something: those of the least weight.

Source: Chen, Goodfellow, Shlens, "Net2Net", ICLR 2016 (growth that keeps the function); residual branches that begin at
zero do it for pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mrbcr_cli.network.blocks import ResidualPair
from mrbcr_cli.network.guide import Tones
from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings, Pairs


def grow(state: Mapping[str, Tensor], held: MrbcrSettings, asked: MrbcrSettings) -> Mrbcr:
    """Return a network of the shape `asked` that does what `state`, of the shape `held`, does (float32).

    What begins without effect is drawn from torch's global generator. Raises ValueError, saying what, where `asked` is
    not at least as large in every part (but for `guide_hidden`, see above) or differs in what cannot grow.
    """
    check_growth(held, asked)
    network, former = Mrbcr(asked), Mrbcr(held)
    former.load_state_dict(state)
    new, old = network.state_dict(), former.state_dict()
    new.update({key: value for key, value in old.items() if not key.startswith("tones.")})
    numbers, former_numbers = _numbers(network), _numbers(former)
    for name in numbers.keys() - former_numbers.keys():
        new[f"{name}.second.weight"] = torch.zeros_like(new[f"{name}.second.weight"])
        new[f"{name}.second.bias"] = torch.zeros_like(new[f"{name}.second.bias"])
    if network.tones is not None and former.tones is not None:
        new.update(_grown_tones(network.tones, former.tones, {n: numbers[name] for name, n in former_numbers.items()}))
    network.load_state_dict(new)
    return network


def check_growth(held: MrbcrSettings, asked: MrbcrSettings) -> None:
    """Raise ValueError, saying what, where a network of `held` cannot be grown into one of `asked`."""
    for name in ("alpha", "stages"):
        if getattr(held, name) != getattr(asked, name):
            raise ValueError(f"{name} {getattr(held, name)} cannot become {getattr(asked, name)}")
    if held.guided and not asked.guided:
        raise ValueError("a guided network cannot become one without a guide")
    for name in ("kt_pairs", "b_pairs"):
        have: Pairs = getattr(held, name)[: held.stages]
        want: Pairs = getattr(asked, name)[: held.stages]
        if [len(scale) for scale in have] != [len(scale) for scale in want] or any(
            few > many for less, more in zip(have, want, strict=True) for few, many in zip(less, more, strict=True)
        ):
            raise ValueError(f"{name} {have} cannot grow into {want}: it takes as many levels, and no fewer pairs")


def _numbers(network: Mrbcr) -> dict[str, int]:
    """The number of each residual pair, which is its place among the tones, by its name."""
    return {name: module.number for name, module in network.named_modules() if isinstance(module, ResidualPair)}


def _grown_tones(new: Tones, old: Tones, moved: dict[int, int]) -> dict[str, Tensor]:
    """The weights of `new` that say what `old` says; `moved`: from a pair's number in `old` to that in `new`."""
    count = min(new.hidden.out_features, old.hidden.out_features)
    weight = old.out.weight.norm(dim=0) * old.hidden.weight.norm(dim=1)
    kept = weight.topk(count).indices.sort().values
    dropped = torch.ones(len(weight), dtype=torch.bool)
    dropped[kept] = False
    hidden, bias = new.hidden.weight.detach().clone(), new.hidden.bias.detach().clone()
    hidden[:count], bias[:count] = old.hidden.weight.detach()[kept], old.hidden.bias.detach()[kept]
    rows = torch.zeros(*new.shape, new.hidden.out_features)
    row_bias = torch.zeros(*new.shape)
    source = old.out.weight.detach()[:, kept].reshape(*old.shape, count)
    # What a dropped feature says of a middling spectrum stays; what it made of others goes.
    middling = torch.relu(old.hidden.bias.detach()[dropped])
    source_bias = (old.out.bias.detach() + old.out.weight.detach()[:, dropped] @ middling).reshape(*old.shape)
    for former, number in moved.items():
        rows[number, ..., :count] = source[former]
        row_bias[number] = source_bias[former]
    return {
        "tones.hidden.weight": hidden,
        "tones.hidden.bias": bias,
        "tones.out.weight": rows.reshape(new.out.weight.shape),
        "tones.out.bias": row_bias.flatten(),
    }
