"""What several test modules share."""

from pathlib import Path

import pytest
from synthetic import write_synthetic


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory) -> Path:
    """A data directory of 2,000 training and 500 test images in ten classes that can be learned; read only."""
    return write_synthetic(tmp_path_factory.mktemp("data"))
