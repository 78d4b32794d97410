"""The table of connections: found by their four addresses (kernels)."""

from __future__ import annotations

from netmem.base.jit import inline_kernel, kernel
from netmem.base.record import Word
from netmem.inet.tcp.tcb import MASK32, StackRecord, Tcb, number_of, tcb_of


@inline_kernel
def fold32(high: int, low: int) -> int:
    """An address as 32 bits, none of which is lost when products with small numbers are added up."""
    return (high ^ (high >> 32) ^ low ^ (low >> 32)) & MASK32


@inline_kernel
def flow_hash(raddr_hi: int, raddr: int, laddr_hi: int, laddr: int, ports: int) -> int:
    """Bucket number before masking, of a connection's four-tuple."""
    x = (fold32(raddr_hi, raddr) * 0x1E3779B1) ^ (fold32(laddr_hi, laddr) * 0x05EBCA6B)
    x = (x ^ (ports * 0x02B2AE35)) & 0xFFFFFFFFFFFF  # products are below 2**63
    return x ^ (x >> 17)


@inline_kernel
def bucket_of(stack: StackRecord, hash_: int) -> Word:
    """The bucket of a hash: 1 more than the number of its first block, 0 without one."""
    return Word.nth(stack.buckets, hash_ & stack.bucket_mask)


@inline_kernel
def lookup(stack: StackRecord, raddr_hi: int, raddr: int, laddr_hi: int, laddr: int, ports: int) -> int:
    """The number of a connection, or -1."""
    c = bucket_of(stack, flow_hash(raddr_hi, raddr, laddr_hi, laddr, ports)).value - 1
    while c >= 0:
        tcb = tcb_of(stack, c)
        if (
            tcb.ports == ports
            and tcb.raddr == raddr
            and tcb.laddr == laddr
            and tcb.raddr_hi == raddr_hi
            and tcb.laddr_hi == laddr_hi
        ):
            return c
        c = tcb.next - 1
    return -1


@inline_kernel
def tcb_bucket(stack: StackRecord, tcb: Tcb) -> Word:
    """Where a block's chain starts."""
    hash_ = flow_hash(tcb.raddr_hi, tcb.raddr, tcb.laddr_hi, tcb.laddr, tcb.ports)
    return bucket_of(stack, hash_)


@kernel
def hash_insert(stack: StackRecord, tcb: Tcb) -> None:
    """Put a block into the hash table."""
    bucket = tcb_bucket(stack, tcb)
    tcb.next = bucket.value
    bucket.value = number_of(stack, tcb) + 1


@kernel
def hash_remove(stack: StackRecord, tcb: Tcb) -> None:
    """Take a block out of the hash table."""
    bucket, wanted = tcb_bucket(stack, tcb), number_of(stack, tcb) + 1
    if bucket.value == wanted:
        bucket.value = tcb.next
        return
    other = bucket.value - 1
    while other >= 0:
        before = tcb_of(stack, other)
        if before.next == wanted:
            before.next = tcb.next
            return
        other = before.next - 1


@inline_kernel
def note_active(stack: StackRecord, tcb: Tcb) -> None:
    """Something happened to a connection: whoever serves many may want to look."""
    if stack.active >= 0 and tcb.active == 0:
        tcb.active = 1
        Word.nth(stack.active_list, stack.active).value = number_of(stack, tcb)
        stack.active += 1


@inline_kernel
def touch(stack: StackRecord, tcb: Tcb) -> None:
    """Put a connection on the list of those that this batch concerned."""
    note_active(stack, tcb)
    if tcb.touched != stack.batch:
        tcb.touched = stack.batch
        Word.nth(stack.touched_list, stack.touched).value = number_of(stack, tcb)
        stack.touched += 1
