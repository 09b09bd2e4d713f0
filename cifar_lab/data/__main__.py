"""Fetches CIFAR-10 if it is not there yet, and prints the SHA-256 sums of its arrays."""

import argparse
import sys

from cifar_lab.data.cache import DataError, load


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cifar_lab.data", description=__doc__)
    parser.add_argument("--data-dir", help="folder of CIFAR-10 (default: $CIFAR10_DIR, else data/)")
    try:
        data = load(parser.parse_args(argv).data_dir)
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
