"""What several test modules share."""

import signal
from pathlib import Path
from unittest import mock

import cifar_lab  # noqa: F401  before PyTorch, see there

# isort: split
import pytest
from synthetic import write_synthetic

from cifar_lab.training import device

# Shells have background commands ignore it, and what they start inherits that: tests could interrupt nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # ignored under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _one_precision():
    """The processor has no bf16 as far as this process can tell, so that numbers and names do not depend on it."""
    with mock.patch.object(device, "has_bf16", return_value=False):
        yield


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory) -> Path:
    """A data directory of 2,000 training and 500 test images in ten classes that can be learned; read only."""
    return write_synthetic(tmp_path_factory.mktemp("data"))


@pytest.fixture
def results():
    """A results folder that writes to memory where the system has such a folder."""
    from trainings import folder_in_memory  # needs POSIX

    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def trainer(monkeypatch):
    """What the commands of `reproduce` go to instead of a training."""
    from pretended import Trainer

    from cifar_lab import reproduce
    from cifar_lab.jobs import here, machine

    trainer = Trainer()
    for module in (here, reproduce):
        monkeypatch.setattr(module, "in_this_process", trainer.run)
    monkeypatch.setattr(machine, "jobs_by_default", lambda *_: 1)
    return trainer


@pytest.fixture(scope="module")
def workers():
    """Processes that have loaded PyTorch, from which trainings are forked."""
    from trainings import worker_pool  # needs POSIX

    with worker_pool() as pool:
        yield pool
