"""Fetches a data set, or decodes a folder of pictures, if need be; prints the SHA-256 sums of its arrays."""

import sys

from cifar_lab.data.cache import CIFAR10, DataError, find, load
from cifar_lab.data.datasets import DATA_SETS
from cifar_lab.program import run
from cifar_lab.settings import Parser, path


def main(argv: list[str]) -> int:
    parser = Parser("python -m cifar_lab.data", __doc__)
    add = parser.add_argument
    add("--dataset", type=path, default=CIFAR10, help=f"{', '.join(DATA_SETS)} or a folder ({CIFAR10})")
    add("--data-dir", type=path, help="folder of the data sets (default: $CIFAR10_DIR, else data/)")
    asked = parser.parse_args(argv)
    try:
        data = load(asked.data_dir, source=find(asked.dataset, asked.data_dir))
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    for key, digest in data.sha256.items():
        print(f"{digest}  {key} {getattr(data, key).shape}")
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])
