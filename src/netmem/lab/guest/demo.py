"""One file received by the kernel's own devmem TCP in a guest, for the demo's table."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from netmem.lab.guest.config import GuestConfig
from netmem.lab.guest.packages import Say, Store
from netmem.lab.guest.prepare import all_sets, prepare, versions
from netmem.lab.guest.scripts import program
from netmem.lab.guest.sources import POOLS

LIMIT_S = 300.0


def is_fetched() -> bool:
    """True when everything for it is in the cache: a demo downloads nothing."""
    try:
        store = Store(lambda text: None)
        return not store.missing(all_sets(versions(store)[0], tests=True))
    except OSError:
        return False


def receive(path: Path, say: Say) -> dict[str, Any]:
    """Receive a file in a guest: release, bytes, sha256, goodput_gbit, hds_hit, outstanding, error."""
    prepared = prepare(say, tests=True)
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="netmem-demo-")))
        try:
            (folder / "file").hardlink_to(path)
        except OSError:
            shutil.copyfile(path, folder / "file")
        config = GuestConfig(share=prepared.images.share(folder, ends))
        with prepared.start(config) as guest:
            guest.wait_ready()
            done = guest.run(program("demo"), LIMIT_S)
            words = done.text.split()
            pools = guest.run(POOLS)
            release, complaints = guest.release, guest.complaints
            split = guest.statistics()[0]["counters"].get("rx_split", 0)
            guest.end()
    size = path.stat().st_size
    failed = done.status != 0 or not re.fullmatch(r"[0-9a-f]{64} [\d.]{1,20} [\d.]{1,20}", " ".join(words))
    said = done.stderr.decode(errors="replace").strip()[-200:] or "no result"
    error = said if failed else "; ".join(complaints)
    seconds = 0.0 if failed else float(words[2]) - float(words[1])
    return {
        "release": release, "error": error, "bytes": 0 if failed else size, "outstanding": pools.status,
        "sha256": "" if failed else words[0], "goodput_gbit": 8 * size / seconds / 1e9 if seconds else 0.0,
        "hds_hit": split,
    }  # fmt: skip
