"""A compiled router of two experts, shared by the tests; a proxy only where the extra is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qos_jax.live.config import RouterConfig
from qos_jax.live.exported import LiveRouter
from qos_jax.live.router import PlannedRouter, plan_router
from qos_jax.workload.fleet import ALLOWED
from tests.live.profile import SMALL

EXPERTS = ("ant", "bee")


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the fleet of two servers such as the fake ones."""
    path = tmp_path_factory.mktemp("live") / "fleet.csv"
    numbers = [str(getattr(SMALL, name)) for name in ALLOWED]
    rows = (",".join((name, *numbers)) for name in EXPERTS)
    path.write_text("\n".join([",".join(("expert", *ALLOWED)), *rows]) + "\n")
    return path


@pytest.fixture(scope="session")
def planned(fleet: Path) -> PlannedRouter:
    return plan_router(RouterConfig(str(fleet), "shortest_queue", latency_limit_s=1.0))


@pytest.fixture(scope="session")
def router(planned: PlannedRouter) -> LiveRouter:
    return planned.compiled()


@pytest.fixture
def live(router: LiveRouter, fleet: Path, tmp_path: Path) -> Any:
    from tests.live.running import opener

    return opener(router, fleet, tmp_path)
