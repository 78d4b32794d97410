"""The records of UDP: sockets, and datagrams as a socket has them queued."""

from __future__ import annotations

from netmem.base.jit import inline_kernel
from netmem.base.record import Record, i64
from netmem.inet.tcp.tcb import StackRecord

SOCKETS = 256  # of a stack, and buckets of their hash table


class UdpSocketRecord(Record):
    """A UDP socket; ``bucket`` belongs to the hash table, whatever socket is here."""

    bucket: i64  # of the hash by port: number + 1 of the chain's first socket
    next: i64  # number + 1
    port: i64  # 0: nobody is here
    head: i64  # datagrams: a chain of entries, each datagram a Datagram and its Pieces
    tail: i64
    bytes: i64
    datagrams: i64
    limit: i64  # most payload bytes to hold
    dropped: i64  # datagrams that found no room
    received: i64
    peer_port: i64  # of a connected socket, 0: any peer
    peer_hi: i64
    peer: i64
    tokens_fd: i64  # descriptor of its token table, 0 without
    buffers: i64  # that its queue holds
    last: i64  # netmem of the last piece in it, 0: empty


class Datagram(Record):
    """The head of a datagram, in an Entry's place."""

    next: i64
    port: i64  # of the sender
    len: i64
    peer_hi: i64
    peer: i64
    pieces: i64
    kind: i64  # EntryKind.DGRAM
    buffers: i64  # that it counts for


class Piece(Record):
    """A piece of a datagram, in an Entry's place."""

    next: i64
    host: i64  # host address, where it is readable
    len: i64
    netmem: i64
    offset: i64
    pool: i64  # handle
    kind: i64  # EntryKind
    _unused: i64


class DatagramRow(Record):
    """A datagram as an application gets it."""

    peer_hi: i64
    peer_lo: i64
    port: i64
    size: i64
    linear: i64  # its linear bytes
    frags: i64


class Receive(Record):
    """Room for datagrams, and what came: all addresses are the host's."""

    rows: i64  # of DatagramRow 0
    rows_room: i64
    frags: i64  # of rows of struct dmabuf_cmsg
    frags_room: i64
    linear: i64  # of room for linear bytes
    linear_room: i64


@inline_kernel
def socket_of(stack: StackRecord, s: int) -> UdpSocketRecord:
    """UDP socket ``s``."""
    return UdpSocketRecord.nth(stack.sockets, s)


@inline_kernel
def datagram_of(stack: StackRecord, i: int) -> Datagram:
    """Entry ``i``, the head of a datagram."""
    return Datagram.nth(stack.entries, i)


@inline_kernel
def piece_of(stack: StackRecord, i: int) -> Piece:
    """Entry ``i``, a piece of a datagram."""
    return Piece.nth(stack.entries, i)
