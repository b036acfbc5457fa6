"""The command `spectrum`: a subcommand if the first word is one, else the spectra of images."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .. import cli
from . import images

#: What runs a subcommand, a module with a `main(argv)` or a function of another name, and what `--help` says of it.
SUBCOMMANDS = {
    "power": cli.Command(".plane", "the spectrum in two dimensions, its directions, and wavelet bands"),
    "difference": cli.Command(".plane:main_difference", "where the DFTs of two sets of images differ (Figure 10)"),
    "wiener": cli.Command(".wiener", "the optimal linear denoiser over frequency and time (Figure 3)"),
    "filters": cli.Command(".filters", "spectral correlation of a network's convolutions against the closed form"),
    "response": cli.Command(".response", "what a denoiser, or two, does to each frequency, against the optimum"),
    "evolution": cli.Command(".evolution", "the spectrum of the denoised prediction at every step (Figure 2)"),
    "toy-1d": cli.Command("..toys.toy_1d", "a small network misses the rare frequency (Example 1, Figure 4)"),
    "toy-2d": cli.Command("..toys.toy_2d", "a small model misses the trough between two peaks of the spectrum"),
    "aliasing": cli.Command("..toys.aliasing", "what sampling too coarsely does to a spectrum"),
}


def main(argv: Sequence[str]) -> None:
    """The command `spectrum`."""
    if argv and argv[0] in SUBCOMMANDS:
        module, _, function = SUBCOMMANDS[argv[0]].module.partition(":")
        getattr(importlib.import_module(module, __package__), function or "main")(argv[1:])
        return
    try:
        images.main(argv)
    except SystemExit:  # after --help
        width = max(map(len, SUBCOMMANDS))
        listing = "\n".join(f"  {name:{width}}  {each.help}" for name, each in SUBCOMMANDS.items())
        print(f"\nsubcommands, each with a --help of its own (a path of such a name is written ./NAME):\n{listing}")
        raise


if __name__ == "__main__":
    sys.exit(cli.run(main))
