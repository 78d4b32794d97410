"""The kernel's own source, as far as selftests and modules need it, out of its package."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from pathlib import Path

from netmem.base.errors import MissingError, NetmemError
from netmem.base.tar import tarfile
from netmem.lab.guest.packages import Store, contents

SELFTESTS = "tools/testing/selftests"
FOLDER = f"/usr/src/kernel/{SELFTESTS}"  # in a guest
POOLS = f"cd {FOLDER}/drivers/net && python3 /netmem/pools"  # which stay when the NIC is down; 1 when some do
PARTS = (
    f"{SELFTESTS}/drivers/net/", f"{SELFTESTS}/net/", f"{SELFTESTS}/lib.mk", f"{SELFTESTS}/kselftest",
    "tools/net/ynl/", "tools/scripts/", "Documentation/netlink/", "tools/lib/bpf/", "tools/include/",
    "include/uapi/", "drivers/net/ethernet/google/", "MAINTAINERS", "COPYING", "LICENSES/",
)  # fmt: skip


def unpacked_source(store: Store, version: str, parts: Sequence[str] = PARTS) -> Path:
    """A folder with those parts of a kernel's source. MissingError when its package was not fetched."""
    version = version.partition("-")[0]  # all flavours are made of the same
    (package,) = store.packages(f"source-{version}")
    mark = hashlib.sha256((package.sha256 + " ".join(parts)).encode()).hexdigest()
    place = store.roots / f"source-{version}-{mark[:16]}"
    if place.is_dir():
        return place
    archive = store.archive(package)
    if not archive.exists():
        raise MissingError(
            f"the source of Linux {version} is not here: `netmem guest fetch --tests` fetches it"
        )
    store.say(f"unpacking the selftests of Linux {version} from its source")
    with store.making(place) as work, contents(archive) as outer:
        member = next((one for one in outer if one.name.endswith(".tar.xz")), None)
        inner = outer.extractfile(member) if member else None
        if inner is None:
            raise NetmemError(errno.EINVAL, f"{package.name} holds no source archive")
        found = 0
        with tarfile.open(fileobj=inner, mode="r|xz") as tar:
            for one in tar:
                _, _, path = one.name.partition("/")
                if path.startswith(tuple(parts)):
                    one.name = path
                    if one.islnk():
                        one.linkname = one.linkname.partition("/")[2]
                    tar.extract(one, work, filter="tar")
                    found += 1
        if not found:
            raise NetmemError(errno.EINVAL, f"{package.name} holds none of what selftests need")
        (work / "MAINTAINERS").touch()  # the generator of ynl looks for it, upwards and for ever
    return place
