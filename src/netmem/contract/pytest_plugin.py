"""The conformance kit in a driver author's own tests: pytest loads this by itself. ::

    @pytest.fixture(scope="session")
    def netmem_driver():
        return "my_module:MyDriver"

    def test_contract(netmem_requirement):                    # one test for each requirement
        assert netmem_requirement.outcome == "pass"

Or, without a fixture, ``pytest --netmem-driver my_module:MyDriver``. The whole kit runs once, with every
kind of memory that the machine has. A blocked requirement skips; a failure reads as in `netmem check -v`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from netmem.contract.requirements import BY_ID, REQUIREMENTS

if TYPE_CHECKING:  # the kit is loaded when it is used: pytest loads this file wherever netmem is installed
    from netmem.contract.report import Verdict

_VERDICT = pytest.StashKey["Verdict"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--netmem-driver."""
    group = parser.getgroup("netmem", "the netmem contract")
    group.addoption(
        "--netmem-driver", metavar="MODULE:CLASS", help="The driver that netmem_requirement is about."
    )


@pytest.fixture(scope="session")
def netmem_driver(request: pytest.FixtureRequest) -> str:
    """The driver, as module:Class: --netmem-driver, unless a test suite has a fixture of this name."""
    name = request.config.getoption("--netmem-driver")
    if not name:
        text = "which driver? A fixture netmem_driver returns module:Class, or --netmem-driver says it"
        pytest.fail(text, pytrace=False)
    return str(name)


@pytest.fixture(scope="session")
def netmem_verdicts(netmem_driver: str) -> dict[str, Verdict]:
    """The kit's verdicts on the driver that the fixture ``netmem_driver`` names (module:Class)."""
    from netmem.contract.report import verdicts
    from netmem.contract.run import CannotRun, MissingError, run

    try:
        return {verdict.requirement: verdict for verdict in verdicts(run(netmem_driver))}
    except (CannotRun, MissingError) as error:
        pytest.fail(f"netmem: {error}", pytrace=False)


@pytest.fixture(params=[requirement.id for requirement in REQUIREMENTS])
def netmem_requirement(request: pytest.FixtureRequest, netmem_verdicts: dict[str, Verdict]) -> Verdict:
    """The verdict on each requirement in turn; skips when another one blocks it."""
    from netmem.contract.report import BLOCKED

    verdict = netmem_verdicts[request.param]
    if verdict.outcome == BLOCKED:
        pytest.skip(f"{verdict.requirement} is blocked by {verdict.by}: {verdict.evidence}")
    request.node.stash[_VERDICT] = verdict
    return verdict


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure says what the kit says, not how the test asked for it."""
    report = yield
    verdict = item.stash.get(_VERDICT, None)
    if report.when == "call" and report.failed and verdict is not None and verdict.outcome != "pass":
        report.longrepr = text_of(verdict)
    return report


def text_of(verdict: Verdict) -> str:
    """A verdict as `netmem check -v` has it: requirement, verdict, evidence, each check, what was raised."""
    from netmem.contract.report import PASS, crash_of

    title = BY_ID[verdict.requirement].title
    lines = [f"{verdict.requirement}  {title}  {verdict.outcome}  {verdict.evidence}"]
    for r in verdict.results:
        by = f" by {r.by}" if r.by else ""
        lines.append(f"      {r.check} ({r.memory})  {r.outcome}{by}  {r.evidence}")
    for r in verdict.results:
        if r.outcome != PASS and r.trace:
            lines += ["", f"{r.requirement} {r.check} ({r.memory}):", r.trace.rstrip()]
    if crash := crash_of(verdict.results):
        lines += ["", crash.removesuffix("; -v has the tracebacks")]
    return "\n".join(lines)
