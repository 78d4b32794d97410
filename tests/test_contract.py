"""The conformance kit: drivers that pass, mutants caught at the right place, reports, and drivers that misbehave."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from conftest import need_nic
from netmem.base.jit import COMPILED
from netmem.contract import mutants, report
from netmem.contract.conformance import CHECKS, Violation, check_r4_pp_flags, check_r7_tokens_held
from netmem.contract.examples import DOCUMENT, EXAMPLES
from netmem.contract.requirements import BY_ID, REQUIREMENTS
from netmem.contract.run import CannotRun, judge, load, plan, run
from netmem.drivers.softnic import SoftnicDriver
from netmem.memory import sanitizer

ROOT = Path(__file__).parent.parent
DRIVERS = {"softnic": "netmem.drivers.softnic:SoftnicDriver", "igb": "netmem.drivers.igb:IgbDriver"}
CRASH = (  # they end their process
    "Prefetches", "SplitNotProgrammed", "LooksAtTheEnd", "HeadersUnreadable", "SplitOnTwoQueues",
    "SplitLostOnRestart",
)  # fmt: skip
ALL_OF_THEM = bool(os.environ.get("NETMEM_MUTANTS"))
compiled_only = pytest.mark.skipif(
    not COMPILED, reason="too slow uncompiled; the kernels are covered elsewhere"
)


def check(*words, cwd=None):
    """Run `netmem check`."""
    command = [sys.executable, "-m", "netmem.cli.entry", "check", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=cwd)


def by_outcome(verdicts):
    """outcome -> requirements."""
    return {
        kind: [v.requirement for v in verdicts if v.outcome == kind] for kind in ("pass", "fail", "blocked")
    }


@compiled_only
@pytest.mark.parametrize("name", ["softnic", "igb"])
def test_shipped_drivers_pass_with_every_kind_of_memory(name):
    need_nic(name)
    results = run(DRIVERS[name])
    assert [r for r in results if r.outcome != "pass"] == []
    memory = {"none", "pages", "dmabuf"} | ({"bar"} if name == "igb" else set())
    assert {r.memory for r in results} == memory
    assert {r.requirement for r in results} == set(BY_ID)
    assert report.warnings_of(results) == []


def planned(mutant, requirement):
    """Every check, in a short run with the kinds of memory that differ most."""
    steps = plan(mutant)
    if ALL_OF_THEM:
        return steps
    return [
        (one, kind)
        for one, kind in steps
        if kind != "pages" or "none" not in one.memory or one.requirement == requirement
    ]


@compiled_only
@pytest.mark.parametrize("name", list(mutants.BREAKS))
def test_each_mutant_fails_at_the_right_requirement_and_at_no_other(name, monkeypatch):
    """Without the sanitiser, as by default: the checks alone must see it."""
    monkeypatch.setenv("NETMEM_SANITIZE", "")
    monkeypatch.setattr(sanitizer, "ON", False)
    if name in CRASH[2:] and not ALL_OF_THEM:
        pytest.skip("ten seconds each: make verify")
    if name in CRASH:
        results = run(f"netmem.contract.mutants:{name}", limit=20)
    else:  # the same, in this process: faster
        mutant = getattr(mutants, name)
        results = [judge(one, mutant, memory) for one, memory in planned(mutant, mutants.BREAKS[name])]
    verdicts = report.verdicts(results)
    assert by_outcome(verdicts)["fail"] == [mutants.BREAKS[name]]
    assert all(v.by for v in verdicts if v.outcome == "blocked")


@pytest.mark.skipif(not ALL_OF_THEM, reason="half a minute each: make verify")
@pytest.mark.parametrize("name", list(mutants.IGB))
def test_each_mutant_of_igb_fails_at_the_right_requirement(name):
    need_nic("igb")
    verdicts = report.verdicts(run(f"netmem.contract.mutants.igb:{name}"))
    assert by_outcome(verdicts)["fail"] == [mutants.BREAKS[name]]


def test_there_are_at_least_three_mutants_for_each_requirement():
    assert len(mutants.BREAKS) >= 60
    for requirement in REQUIREMENTS:
        assert list(mutants.BREAKS.values()).count(requirement.id) >= 3
    assert {c.requirement for c in CHECKS} == set(BY_ID)
    order = [r.id for r in REQUIREMENTS]
    assert all(need in order for r in REQUIREMENTS for need in r.needs)


def test_checks_are_functions_without_pytest():
    assert "payload pools looked at" in check_r4_pp_flags(SoftnicDriver)
    with pytest.raises(Violation) as error:
        check_r7_tokens_held(mutants.PostsTwice, "pages")
    assert error.value.requirement == "R7"


@compiled_only
def test_drivers_that_raise_or_kill_their_process_are_reported_and_the_next_check_goes_on():
    for name, text in (("RaisesInOpen", "never finished"), ("KillsItsProcess", "with status 3")):
        done = check(f"netmem.contract.crashers:{name}", "--only", "R2", "--only", "TX2")
        assert done.returncode == 1
        assert text in done.stdout
        assert "TX2" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
    raised = check("netmem.contract.crashers:RaisesInOpen", "--only", "R4", "-v")
    assert "RuntimeError: this driver was never finished" in raised.stdout
    assert "in open" in raised.stdout


@compiled_only
def test_few_descriptors_are_enough():
    """What a check leaves in circles is let go before the limit: a driver is not blamed for our descriptors."""
    words = [sys.executable, "-m", "netmem.cli.entry", "check", DRIVERS["softnic"]]
    limited = ["sh", "-c", 'ulimit -n 512; exec "$@"', "sh", *words]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=110)
    assert (done.returncode, "9 pass, 0 fail" in done.stdout) == (0, True), done.stdout


@compiled_only
def test_a_driver_that_hangs_costs_the_limit_only():
    (result,) = run("netmem.contract.crashers:HangsInPoll", only=("R6",), limit=1)[:1]
    assert result.outcome == "fail"
    assert result.evidence == "did not end in 1 s"


@compiled_only
def test_a_killed_check_takes_its_hanging_worker_with_it():
    command = [sys.executable, "-m", "netmem.cli.entry", "check", "netmem.contract.crashers:HangsInPoll"]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    below: list[str] = []
    while len(below) < 2 and time.monotonic() < deadline:  # the worker, and the shell that watches over it
        below = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        select.select([], [], [], 0.01)
    parent.kill()
    parent.wait()
    while any(is_running(pid) for pid in below) and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    assert len(below) == 2
    assert not any(is_running(pid) for pid in below)


def is_running(pid):
    """False for what is gone, or waits only to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nonsense", "is not MODULE:CLASS"),
        ("no_such_module:Driver", "cannot import no_such_module"),
        ("netmem.drivers.softnic:Nope", "has no Nope"),
        ("os:path", "no device model has the device ids"),
    ],
)
def test_what_is_no_driver_is_one_line(name, text):
    with pytest.raises(CannotRun, match=text):
        load(name)


def test_what_is_no_driver_has_status_2():
    done = check("os:path")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_formats_say_the_same():
    name = "netmem.contract.mutants:FlagAlways"
    found = report.verdicts(run(name, only=("R4",)))
    body = json.loads(report.as_json(name, found, ["a warning"]))
    assert (body["driver"], body["warnings"]) == (name, ["a warning"])
    assert body["requirements"]["R4"]["outcome"] == "fail"
    evidence = body["requirements"]["R4"]["evidence"]
    assert "ALLOW_UNREADABLE_NETMEM with split unknown" in evidence
    suite = xml.fromstring(report.as_junit(name, found, []))
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert suite.find("testcase/failure").get("message") in evidence
    ktap = report.as_ktap(name, found, []).splitlines()
    assert ktap[0] == "KTAP version 1"
    assert ktap[-1].startswith("not ok 1 R4 # the payload pool has")
    done = check(name, "--only", "R4", "--format", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["requirements"]["R4"]["evidence"] == evidence


@compiled_only
def test_conversions_are_warned_of(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from netmem.drivers.softnic import SoftnicDriver\n"
        "from netmem.memory.netmem import netmem_is_net_iov\n"
        "class Mine(SoftnicDriver):\n"
        "    def napi_poll(self, queue, budget, batch):\n"
        "        got = super().napi_poll(queue, budget, batch)\n"
        "        for row in batch.used():\n"
        "            netmem_is_net_iov(row.netmem)\n"
        "        return got\n"
    )
    done = check("mine:Mine", "--only", "R3", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning: the driver calls netmem_is_net_iov()" in done.stdout


@compiled_only
def test_the_documented_driver_is_the_example_and_passes():
    done = check("tiny_driver:TinyDriver", cwd=ROOT / "examples")
    assert done.returncode == 0, done.stdout + done.stderr
    example = (ROOT / "examples" / "tiny_driver.py").read_text()
    blocks = (ROOT / "docs" / "drivers.md").read_text().split("```python\n")[1:]
    assert len(blocks) >= 5
    for block in blocks:
        code = block.split("```")[0]
        if "netmem_driver" not in code:
            assert code in example


@compiled_only
def test_the_pytest_plugin_has_a_test_for_each_requirement(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = "netmem.contract.pytest_plugin"\n')
    (tmp_path / "test_mine.py").write_text(
        "import pytest\n"
        "@pytest.fixture(scope='session')\n"
        "def netmem_driver():\n"
        "    return 'netmem.contract.mutants:FlagNever'\n"
        "def test_contract(netmem_requirement):\n"
        "    assert netmem_requirement.outcome == 'pass', netmem_requirement.evidence\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, cwd=tmp_path, env=dict(os.environ)
    )
    assert "1 failed, 3 passed, 5 skipped" in done.stdout, done.stdout


def test_the_table_in_the_documentation_is_true():
    """docs/drivers.md lists every requirement, and every mutant with what it breaks."""
    text = (ROOT / "docs" / "drivers.md").read_text()
    for requirement in REQUIREMENTS:
        assert f"| {requirement.id} | {requirement.title} |" in text
    for name, requirement in mutants.BREAKS.items():
        assert f"| `{name}` | {requirement} |" in text


@pytest.mark.parametrize("id_", [one.id for one in REQUIREMENTS])
def test_each_requirement_is_explained(id_):
    """With the words of its own, code both ways, and where the kernel's document asks for it."""
    words = [sys.executable, "-m", "netmem.cli.entry", "explain", id_.lower()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{id_}: {BY_ID[id_].title}\n")
    assert EXAMPLES[id_].good.split("\n")[0].strip() in done.stdout
    assert f"{DOCUMENT}, {EXAMPLES[id_].document}" in " ".join(done.stdout.split())
    body = json.loads(subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=60).stdout)
    assert (body["id"], body["bad"]) == (id_, EXAMPLES[id_].bad)
    assert not any(line != line.rstrip() for line in done.stdout.splitlines())
    done = subprocess.run([*words, "--try"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "is a requirement" in done.stderr) == (2, True)


@compiled_only
@pytest.mark.parametrize("name", ["LeaksEverySixteenth", "KeepsTwo"])
def test_optimised_python_switches_no_account_off(name):
    """With -O there are no asserts: what the kit counts must not be one."""
    words = [
        sys.executable,
        "-O",
        "-m",
        "netmem.cli.entry",
        "check",
        "--only",
        "R7",
        f"netmem.contract.mutants:{name}",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110)
    assert (done.returncode, "0 pass, 1 fail" in done.stdout) == (1, True), done.stdout
