"""Fetches a data set, or decodes a folder of pictures, if need be; prints the SHA-256 sums of its arrays."""

import argparse
import sys

from cifar_lab.data.cache import CIFAR10, DataError, find, load
from cifar_lab.data.datasets import DATA_SETS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cifar_lab.data", description=__doc__)
    parser.add_argument("--dataset", default=CIFAR10, help=f"{', '.join(DATA_SETS)} or a folder ({CIFAR10})")
    parser.add_argument("--data-dir", help="folder of the data sets (default: $CIFAR10_DIR, else data/)")
    asked = parser.parse_args(argv)
    try:
        data = load(asked.data_dir, source=find(asked.dataset, asked.data_dir))
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command starts again", file=sys.stderr)
        return 130
    for key, digest in data.sha256.items():
        print(f"{digest}  {key} {getattr(data, key).shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
