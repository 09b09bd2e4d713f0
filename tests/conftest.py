"""What several test modules share."""

from pathlib import Path

import pytest
from synthetic import write_synthetic


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


@pytest.fixture(scope="module")
def workers():
    """Processes that have loaded PyTorch, from which trainings are forked."""
    from trainings import worker_pool  # needs POSIX

    with worker_pool() as pool:
        yield pool
