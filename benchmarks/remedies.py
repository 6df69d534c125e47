"""Whether the first remedy that `gradfuse report` offers helps.

Networks of every family are drawn by seed, as for `benchmarks verdict`, until so many are called `explodes`. The first remedy
of the report is applied as its text says - the network is built anew with it - and measured as there. Printed is the
growth and the norm before and after; a remedy helps where the network no longer explodes. Clipping alone counts as no help.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from itertools import count

from gradfuse.analysis import Remedy, RiskReport, analyse

from .verdict import measure
from .verdict_networks import FAMILIES, Network, draw

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Print a line for each network, and how many were helped."""
    parser = argparse.ArgumentParser(prog="benchmarks remedies", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which networks to draw (default: 0)")
    parser.add_argument(
        "--networks", type=int, default=20, help="networks that are called `explodes` (default: 20)"
    )
    options = parser.parse_args(arguments)
    helped = 0
    for number, (network, report) in enumerate(_exploding(options.seed), 1):
        helped += _try(network, report)
        if number == options.networks:
            break
    print(f"the first remedy helped {helped} of {options.networks} networks")
    return 0


def _exploding(seed: int) -> Iterator[tuple[Network, RiskReport]]:
    for index in count():
        for family in FAMILIES:
            network = draw(family, seed, index)
            report = analyse(network.gradients())
            if report.summary.verdict == "explodes":
                yield network, report


def _try(network: Network, report: RiskReport) -> bool:
    remedy = next((remedy for finding in report.findings for remedy in finding.remedies), None)
    before = measure(network.gradients())
    name = f"{network.family}, {network.activation}, {network.norm or 'no norm'}, depth {network.depth}"
    if remedy is None or remedy.kind == "fuse":
        print(f"  no   {name}: nothing but {remedy.kind if remedy else 'nothing'} was offered")
        return False
    after = measure(_applied(network, remedy).gradients())
    print(
        f"  {'no ' if after.explodes else 'yes'}  {name}: {remedy.kind}: growth {before.growth:.3g} -> {after.growth:.3g},"
        f" norm {before.norm:.3g} -> {after.norm:.3g} (predicted {10**remedy.predicted_log10_gain:.3g},"
        f" {remedy.predicted_global_norm:.3g})",
        flush=True,
    )
    return not after.explodes


def _applied(network: Network, remedy: Remedy) -> Network:
    """The network as the line for PyTorch makes it."""
    numbers = [
        float(number) for number in re.findall(r"(?:std=|gain=|x \+ )(\d+\.?\d*(?:e-\d+)?)", remedy.pytorch)
    ]
    if remedy.kind == "normalisation":
        return network.changed(norm="batch" if "BatchNorm" in remedy.pytorch else "layer")
    if remedy.kind == "activation":
        return network.changed(activation="relu", gain=2.0**0.5, everywhere=True)
    if remedy.kind == "residual":
        return network.changed(branch=numbers[0])
    if "orthogonal" in remedy.text:
        return network.changed(orthogonal=numbers[0])
    return network.changed(gain=numbers[0], everywhere=True)
