"""The command `data`: build a data set that ships with the kit from the packages that it comes from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import cli, emoji


def main(argv: Sequence[str]) -> None:
    """The command `data`."""
    parser = cli.Parser("data", __doc__)
    parser.add_argument("name", choices=["emoji"], help="the data set")
    parser.add_argument("--out", type=Path, default=Path("emoji64.tar"), help="the WebDataset shard to write")
    parser.add_argument("--size", type=int, default=64, help="side of the square images, in pixels")
    parser.add_argument("--pictures", type=Path, help=f"the .tgz of npm's {emoji.PICTURES}, when it is at hand")
    parser.add_argument("--names", type=Path, help=f"the .tgz of npm's {emoji.NAMES}, when it is at hand")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    cli.report(emoji.build(arguments.out, arguments.size, arguments.pictures, arguments.names), arguments.json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
