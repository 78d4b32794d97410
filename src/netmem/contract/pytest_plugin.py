"""The conformance kit in a driver author's own tests.

    pytest_plugins = "netmem.contract.pytest_plugin"          # in conftest.py

    @pytest.fixture(scope="session")
    def netmem_driver():
        return "my_module:MyDriver"

    def test_contract(netmem_requirement):                    # one test for each requirement
        assert netmem_requirement.outcome == "pass", netmem_requirement.evidence

The whole kit runs once, with every kind of memory that the machine has. A blocked requirement skips.
"""

from __future__ import annotations

import pytest

from netmem.contract.report import BLOCKED, Verdict, verdicts
from netmem.contract.requirements import REQUIREMENTS
from netmem.contract.run import run


@pytest.fixture(scope="session")
def netmem_verdicts(netmem_driver: str) -> dict[str, Verdict]:
    """The kit's verdicts on the driver that the fixture ``netmem_driver`` names (module:Class)."""
    return {verdict.requirement: verdict for verdict in verdicts(run(netmem_driver))}


@pytest.fixture(params=[requirement.id for requirement in REQUIREMENTS])
def netmem_requirement(request: pytest.FixtureRequest, netmem_verdicts: dict[str, Verdict]) -> Verdict:
    """The verdict on each requirement in turn; skips when another one blocks it."""
    verdict = netmem_verdicts[request.param]
    if verdict.outcome == BLOCKED:
        pytest.skip(f"{verdict.requirement} is blocked by {verdict.by}: {verdict.evidence}")
    return verdict
