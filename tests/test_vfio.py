"""What of VFIO needs no VFIO: names, I/O addresses, what is said before a function is opened."""

from __future__ import annotations

import errno
import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

import netmem
from netmem.base.errors import NetmemError
from netmem.base.kernel_log import COMPLAINT
from netmem.hw.vfio.bus import FAULT, FIRST_IOVA, HUGE, free_iova
from netmem.lab.vfio import Vfio, vfio_of

PAGE = mmap.PAGESIZE


def place_of(taken, ranges, size):
    """None where there is no room."""
    try:
        return free_iova(taken, ranges, size)
    except NetmemError as error:
        if error.errno != errno.ENOSPC:
            raise
        return None


@given(
    steps=st.lists(st.one_of(st.integers(1, 600), st.just(0)), max_size=60),
    gap=st.integers(0, 2000),
    room=st.integers(1, 4000),
)
def test_io_addresses_never_overlap(steps, gap, room):
    """Taken and given back in any order, in two ranges with a hole between them."""
    middle = FIRST_IOVA + room * PAGE
    ranges = [(0, middle - 1), (middle + gap * PAGE, middle + (gap + room) * PAGE - 1)]
    taken: dict[int, int] = {}
    for step in steps:
        if not step:
            if taken:
                taken.pop(sorted(taken)[len(taken) // 2])
            continue
        size = step * PAGE
        at = place_of(taken, ranges, size)
        if at is None:
            # Nothing that large was free, at the alignment that it gets.
            align = HUGE if size >= HUGE else PAGE
            for first, last in ranges:
                for place in range(-(-max(first, FIRST_IOVA) // align) * align, last - size + 2, align):
                    assert any(s < place + size and place < s + n for s, n in taken.items())
            continue
        assert at >= FIRST_IOVA
        assert at % (HUGE if size >= HUGE else PAGE) == 0
        assert any(first <= at and at + size - 1 <= last for first, last in ranges)
        assert all(at + size <= s or s + n <= at for s, n in taken.items())
        taken[at] = size


@pytest.mark.parametrize(
    ("bus", "code", "words"),
    [
        ("vfio:03:00.0", errno.EINVAL, "is no PCI function"), ("vfio:", errno.EINVAL, "unknown bus"),
        ("vfio", errno.EINVAL, "unknown bus"), ("pci:0000:00:00.0", errno.EINVAL, "unknown bus"),
        ("vfio:ffff:ff:1f.7", errno.ENODEV, "there is no PCI function"),
        ("vfio:0000:00:00.0/../..", errno.EINVAL, "is no PCI function"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_had(bus, code, words):
    with pytest.raises(NetmemError, match=words) as raised:
        netmem.open_device("igb", bus=bus)
    assert raised.value.errno == code


def test_a_function_is_an_igb_and_its_own_wire():
    for options in ({"nic": "softnic"}, {"nic": "igb", "wire": "tap:nm9"}):
        with pytest.raises(NetmemError, match="is of nic igb"):
            netmem.open_device(bus="vfio:0000:03:00.0", **options)


def test_names():
    assert vfio_of("qemu") is None
    assert vfio_of("vfio:0000:03:00.0") == Vfio("0000:03:00.0")
    assert vfio_of("vfio:0000:03:00.0", ["10.1.0.2/16"], ["10.1.0.1"]) == Vfio(
        "0000:03:00.0", ("10.1.0.2/16",), ("10.1.0.1",)
    )


def test_what_iommus_say_of_a_fault():
    for line in (
        "DMAR: [DMA Write NO_PASID] Request device [03:00.0] fault addr 0x1000 [fault reason 0x06] x",
        "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:03:00.0 domain=0x1 address=0x1000 flags=0x0]",
        "arm-smmu-v3 arm-smmu-v3.0.auto: event: F_TRANSLATION client: 0000:03:00.0 sid: 0x300",
    ):
        assert FAULT.search(line), line
    assert not FAULT.search("DMAR: Intel(R) Virtualization Technology for Directed I/O")
    assert COMPLAINT.search("DMAR: [DMA Write NO_PASID] Request device [03:00.0] fault addr 0x1000")
