"""One thread, one seed, and every shape annotation of the core and the models checked while the tests run."""

from jaxtyping import install_import_hook

# Before the first import of these packages: the hook rewrites modules as they are loaded.
install_import_hook(["titans_ts.core", "titans_ts.models"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
