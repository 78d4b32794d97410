"""The conformance kit: drivers that pass, mutants caught at the right place, reports, and drivers that misbehave."""

from __future__ import annotations

import json
import os
import re
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
from netmem.contract.run import READY_S, CannotRun, judge, load, plan, run
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
def test_a_driver_that_crashes_is_told_from_one_that_breaks_something(tmp_path):
    """What raised, where, once and in each form; the requirements are neither kept nor broken."""
    (tmp_path / "mine.py").write_text(
        "from netmem.drivers.softnic import SoftnicDriver\n"
        "class Mine(SoftnicDriver):\n"
        "    def queue_start(self, ring, queue):\n"
        "        return self.nothing.there\n"
    )
    done = check("mine:Mine", cwd=tmp_path)
    assert done.returncode == 1
    where = "AttributeError: 'Mine' object has no attribute 'nothing' (mine.py:4, in queue_start)"
    assert "0 pass, 0 fail, 9 crash, 0 blocked" in done.stdout
    assert re.search(rf"the driver crashed in (\d+) of \1 checks: {re.escape(where)}; -v has", done.stdout)
    assert "Traceback" not in done.stdout
    assert "self.nothing.there" in check("mine:Mine", "--only", "R1", "-v", cwd=tmp_path).stdout
    suite = xml.fromstring(check("mine:Mine", "--format", "junit", cwd=tmp_path).stdout)
    assert suite.get("errors") == suite.get("tests")
    assert suite.get("failures") == "0"
    assert "not ok 1 R1 # crash: " in check("mine:Mine", "--format", "ktap", cwd=tmp_path).stdout


@compiled_only
def test_assertions_and_faults_of_the_drivers_own_are_crashes(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import ctypes\n"
        "from netmem.drivers.softnic import SoftnicDriver\n"
        "class Asserts(SoftnicDriver):\n"
        "    def queue_start(self, ring, queue):\n"
        "        assert queue > 9\n"
        "class Faults(SoftnicDriver):\n"
        "    def open(self, dev):\n"
        "        ctypes.string_at(0)\n"
        "class Static(SoftnicDriver):\n"
        "    @staticmethod\n"
        "    def set_rules(rules):\n"
        "        pass\n"
        "    def __init__(self, bus):\n"
        "        super().__init__(bus)\n"
        "        self.irq_arm = super().irq_arm\n"
    )
    said = check("mine:Asserts", cwd=tmp_path).stdout
    assert "0 pass, 0 fail, 9 crash" in said, said
    assert "(mine.py:5, in queue_start)" in said
    said = check("mine:Faults", "--only", "R5", "--only", "R2", cwd=tmp_path).stdout
    assert "0 pass, 0 fail, 2 crash" in said, said
    assert "looked at" not in said
    assert check("mine:Static", "--only", "TX2", cwd=tmp_path).returncode == 0


@compiled_only
def test_a_driver_that_never_gets_ready_costs_ten_seconds(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import threading\n"
        "from netmem.drivers.softnic import SoftnicDriver\n"
        "class Mine(SoftnicDriver):\n"
        "    def open(self, dev):\n"
        "        threading.Event().wait()\n"
    )
    start = time.monotonic()
    done = check("mine:Mine", cwd=tmp_path)
    assert time.monotonic() - start < 20
    assert "not ready in 10 s (mine.py:5, in open)" in done.stdout
    assert done.stdout.count(" crash ") == 9
    assert READY_S <= 10


def test_the_interface_is_looked_at_before_anything_runs(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from netmem.drivers.softnic import SoftnicDriver\n"
        "class Half:\n"
        "    device_ids = SoftnicDriver.device_ids\n"
        "    def __init__(self, bus):\n"
        "        raise SystemExit('it ran')\n"
        "class Other(SoftnicDriver):\n"
        "    def napi_poll(self, queue):\n"
        "        return 0\n"
        "class Bare(SoftnicDriver):\n"
        "    def __init__(self):\n"
        "        raise SystemExit('it ran')\n"
    )
    for name, text in (
        ("Half", r"missing, or different: max_mtu; hw_features; open\(\); stop\(\), and \d+ more"),
        ("Other", r"napi_poll\(self, queue\) instead of napi_poll\(self, queue, budget, batch\)"),
        ("Bare", r"__init__\(self\) instead of __init__\(self, bus\)"),
    ):
        done = check(f"mine:{name}", cwd=tmp_path)
        assert done.returncode == 2
        assert re.search(text, done.stderr), done.stderr
        assert done.stderr.count("\n") == 1
        assert "it ran" not in done.stderr


@compiled_only
def test_what_the_sanitiser_saw_stands_beside_what_the_check_saw():
    done = check("netmem.contract.mutants:PostsTwice", "--only", "R7", "--sanitize", "--format", "junit")
    assert done.returncode == 1
    assert re.search(r"netmems were put that nobody held; the sanitizer: double put", done.stdout), (
        done.stdout
    )


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
    assert result.outcome == "crash"
    assert re.search(r"did not end in 1 s \(.*crashers\.py:\d+, in napi_poll\)", result.evidence)


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


def own_tests(folder, *words, conftest="", test=None):
    """pytest in a driver author's folder."""
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_mine.py").write_text(
        test or "def test_contract(netmem_requirement):\n    assert netmem_requirement.outcome == 'pass'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=folder).stdout


@compiled_only
@pytest.mark.parametrize("how", ["option", "fixture", "named"])
def test_pytest_has_a_test_for_each_requirement(tmp_path, how):
    """By its entry point, or named in a conftest as before; failures read as the kit's own report."""
    name = "netmem.contract.mutants:FlagNever"
    plugin = 'pytest_plugins = "netmem.contract.pytest_plugin"\n' if how == "named" else ""
    fixture = f"import pytest\n@pytest.fixture(scope='session')\ndef netmem_driver():\n    return {name!r}\n"
    words = ["--netmem-driver", name] if how == "option" else []
    said = own_tests(tmp_path, *words, conftest=plugin + (fixture if how != "option" else ""))
    assert "1 failed, 3 passed, 5 skipped" in said, said
    text = check(name, "--only", "R4").stdout
    evidence = re.search(r"R4 .*fail +(the payload pool.*?) +[\d.]+$", text, re.MULTILINE).group(1)
    assert f"R4  page pool flags  fail  {evidence}" in said
    assert "r4_pp_flags (" in said
    assert "assert netmem_requirement" not in said


@compiled_only
def test_pytest_without_a_driver_or_with_a_wrong_one_says_so(tmp_path):
    assert "--netmem-driver says it" in own_tests(tmp_path)
    assert "netmem: cannot import nowhere" in own_tests(tmp_path, "--netmem-driver", "nowhere:Driver")
    plain = own_tests(tmp_path, test="import sys\ndef test():\n    assert 'numba' not in sys.modules\n")
    assert "1 passed" in plain, (
        plain
    )  # where netmem is installed and not used, pytest starts as fast as before


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
