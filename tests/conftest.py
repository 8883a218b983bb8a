"""What several tests need: the shared data, the sample clip, and the order in which all run."""

from __future__ import annotations

import os
from pathlib import Path

import brokers
import pytest
import shared_data
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
WITH_BROKER = {
    "test_worker.py": "broker 1",
    "test_older_files.py": "broker 1",
    "test_live_review.py": "broker 1",
    "test_client.py": "broker 2",
    "test_decisions_in_the_stream.py": "broker 2",
    "test_matcher.py": "broker 2",
    "test_poison.py": "broker 2",
    "test_security.py": "broker 2",
    "test_intake.py": "broker 3",
    "test_stream.py": "broker 3",
}
"""Which test files run one after the other, on one broker; they take about the same time."""
LONG = (
    "test_replay.py",
    "test_page.py",
    "test_reid_torch.py",
    "test_calibrate.py",
    "test_reid.py",
    "test_reid_gpu.py",
    "test_media_s3.py",
)
# No deadline: a slow machine is no fault. Derandomised in CI, so that a failure there can be
# repeated.
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker that is added below."""
    config.addinivalue_line(
        "markers", "shared: needs the research data in ../shared; added to all that ask for them"
    )


def pytest_report_header() -> str:
    """Say whose Kafka the integration tests will run against."""
    return f"broker: {brokers.broker_source()[0]}"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the shared data, and put the longest first.

    Those with a broker first, then other long ones: at the end only short ones are left to share.
    """
    for item in items:
        if "shared" in item.fixturenames:
            item.add_marker(pytest.mark.shared)
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    name = item.path.name
    if name in WITH_BROKER:
        return -1
    return LONG.index(name) if name in LONG else len(LONG)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Share the files among the processes, and those that work with a broker by their groups.

    They mostly wait for services to start and to meet, so three of them at once keep two cores
    busy. Each has a broker of its own, as a process of pytest's has.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return WITH_BROKER.get(Path(file).name, file)

    return Scheduler(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of research data beside the checkout."""
    folder = shared_data.shared_folder()
    if folder is not None:
        return folder
    if shared_data.is_required():
        pytest.fail(f"{shared_data.VARIABLE}=required, and there is no folder ../shared with data")
    pytest.skip("needs the research data in ../shared, which are not here")


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the sample clip, sample.mp4 and sample.persons.npz."""
    return ROOT / "tests" / "sample"


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of all tests in all processes: torch takes ten seconds for one export."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("STREAMPROC_") and not name.startswith("STREAMPROC_TEST_"):
            monkeypatch.delenv(name)
