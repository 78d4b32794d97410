"""What a guest leaves in /out, put below a folder of the user's. The guest may be hostile."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import IO

from netmem.base.errors import NetmemError
from netmem.base.tar import tarfile
from netmem.base.text import printable
from netmem.lab.guest.packages import Say


def unpack_out(archive: IO[bytes], folder: Path, say: Say) -> int:
    """Files and folders of a tar archive, nothing else, below ``folder``; how many files.

    What is no file, or would lie elsewhere, is left out and said. EINVAL for what is no archive.
    """
    count = 0
    try:
        with tarfile.open(fileobj=archive, mode="r|") as tar:
            for member in tar:
                parts = [part for part in PurePosixPath(member.name).parts if part != "."]
                if not parts:
                    continue
                source = tar.extractfile(member) if member.isfile() else None
                if (source is None and not member.isdir()) or not _is_below(parts, folder):
                    say(f"left in the guest: {printable(member.name)[:200]}: no file of this folder")
                    continue
                place = folder.joinpath(*parts)
                if source is None:
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                mode = 0o755 if member.mode & 0o100 else 0o644
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(place, flags, mode)
                with os.fdopen(fd, "wb") as target:
                    shutil.copyfileobj(source, target)
                count += 1
    except (tarfile.TarError, ValueError) as error:
        text = f"what the guest left in /out cannot be unpacked: {error}"
        raise NetmemError(errno.EINVAL, text) from None
    return count


def _is_below(parts: list[str], folder: Path) -> bool:
    """True when a path leads nowhere else: no way up, and no link on the way."""
    if ".." in parts or parts[0] == "/":
        return False
    place = folder
    for part in parts:
        place = place / part
        if place.is_symlink():
            return False
    return True
