"""Windows and pledges: who may hold how much of a pool, whatever peers do; SYN floods and cookies."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_provider, payload, scaled
from netmem.base.address import ip
from netmem.base.clock import MS, SEC
from netmem.base.errors import NetmemError
from netmem.base.jit import COMPILED
from netmem.base.record import address_of
from netmem.inet.tcp import calls, cookies
from netmem.inet.tcp import window as w
from netmem.inet.tcp.connections import TcpConfig
from netmem.inet.tcp.cookies import Offer, SynCookies
from netmem.inet.tcp.tcb import MASK32, Flag, StackRecord, Tcb, TcpState
from netmem.testing import frames
from netmem.testing.crowd import PROFILES, Profile, run
from netmem.testing.net import PORT

SYN, ACK = 0x02, 0x10
MSS_OPTION = bytes.fromhex("020405b4")
SMALL = TcpConfig(connections=64)


def account(net, queue=1):
    """Available and pledged buffers of a queue."""
    found = net.ours.stack.conns.record.accounts[queue]
    return found.available, found.pledged


def pledged(net, sock):
    return net.ours.stack.conns.tcbs[sock._c].pledged


def take_all(sock, *, keep=False):
    """Receive what is there, give it back unless it is to be kept; bytes and tokens."""
    size, tokens = 0, []
    while sock.queued():
        message = sock.recvmsg_devmem()
        size += message.size
        if keep:
            tokens += message.frags["frag_token"].tolist()
        elif len(message.frags):
            sock.devmem_dontneed(message.frags["frag_token"])
    return size, tokens


@given(
    available=st.integers(0, 5000), reserve=st.integers(0, 128), pledges=st.integers(0, 5000),
    mine=st.integers(0, 500), queued=st.integers(0, 500), disorder=st.integers(0, 500), user=st.integers(0, 5000),
)  # fmt: skip
def test_room_is_what_the_shares_leave(available, reserve, pledges, mine, queued, disorder, user):
    """Against the words of the plan: held at most once what is free, with the application's four times."""
    tcb, stack = Tcb(), StackRecord()
    stack.tcbs, account = address_of(tcb), stack.accounts[0]
    pledges = max(pledges, mine)
    account.available, account.reserve, account.pledged = available, reserve, pledges
    tcb.pledged, tcb.rq_bufs, tcb.oq_bufs, tcb.user = mine, queued, disorder, user
    more = calls.room(address_of(stack), 0)
    held, free = mine + queued + disorder, available - reserve - pledges

    def fits(n):
        return held + n <= free - n and held + user + n <= w.USER_SHARE * (free - n)

    assert more >= 0
    assert more == 0 or fits(more)
    assert not fits(more + 1)


def test_states_that_receive_nothing_more_pledge_nothing(network):
    net = network()
    net.bind(make_provider("dmabuf", size=1 << 20))
    closing, peer, _ = net.connect()
    half, other, _ = net.connect()
    for sock in (peer, other):
        sock.send(payload(3000))
    net.run(20)
    assert pledged(net, closing) > 0
    take_all(closing)
    peer.shutdown()  # its FIN is seen: CLOSE-WAIT here
    net.run(20)
    assert closing.state() == TcpState.CLOSE_WAIT
    assert pledged(net, closing) == 0
    take_all(half)
    half.shutdown()  # FIN-WAIT-2 here: data may still come
    net.run(20)
    assert half.state() == TcpState.FIN_WAIT_2
    assert pledged(net, half) > 0
    other.shutdown()
    net.run(20)
    assert half.state() == TcpState.TIME_WAIT
    assert account(net)[1] == 0


def test_an_orphan_pledges_nothing(network):
    net = network()
    net.bind(make_provider("dmabuf", size=1 << 20))
    ours, theirs, _ = net.connect()
    theirs.send(payload(3000))
    net.run(20)
    take_all(ours)
    ours.shutdown()
    net.run(20)
    c = ours._c
    ours.close()
    assert net.ours.stack.conns.tcbs[c].state == TcpState.FIN_WAIT_2
    assert account(net)[1] == 0


def test_short_writes_after_a_long_transfer_take_nobody_elses_window(network):
    """4 MB, then 300 writes of one byte, then silence: what is pledged stays below what there is."""
    net = network()
    net.bind(make_provider("dmabuf", size=4 << 20))
    ours, theirs, _ = net.connect()
    left = memoryview(payload(scaled(4_000_000)))
    while len(left) or ours.queued():
        if len(left) and theirs.writable():
            left = left[theirs.send(left) :]
        net.run(1)
        take_all(ours)
    theirs.set_nodelay()
    for _ in range(scaled(300)):
        theirs.send(b"x")
        net.run(1)
        take_all(ours)
    available, given_away = account(net)
    assert given_away <= available // 2
    second, peer, _ = net.connect()
    peer.send(payload(20_000))
    net.until(lambda: second.queued() == 20_000, 2000)
    take_all(second)


@pytest.mark.parametrize("memory", ["none", "pages"])
def test_short_segments_share_a_buffer_where_memory_is_readable(network, memory):
    net = network()
    net.bind(make_provider(memory))
    ours, theirs, _ = net.connect()
    theirs.set_nodelay()
    data = payload(300)
    for i in range(len(data)):
        theirs.send(data[i : i + 1])
        net.run(1)
    net.run(5)
    assert ours.queued() == len(data)
    conns = net.ours.stack.conns
    assert conns.tcbs[ours._c].rq_bufs <= 2
    assert conns.counters()["merged"] >= len(data) - 2
    if memory == "none":
        assert ours.recv(1000) == data
        return
    message = ours.recvmsg_devmem()
    view = net.provider.map()
    got = message.linear + b"".join(
        view[int(f["frag_offset"]) : int(f["frag_offset"]) + int(f["frag_size"])].tobytes()
        for f in message.frags
    )
    assert got == data
    ours.devmem_dontneed(message.frags["frag_token"])


def test_a_peer_of_single_bytes_that_nobody_reads_leaves_the_pool_to_others(network):
    """Unreadable memory: each byte takes a buffer, so it gets few, and loses what is beyond them; then recovers."""
    net = network(config=SMALL)
    net.bind(make_provider("dmabuf", size=1 << 20))  # 256 buffers
    ours, theirs, _ = net.connect()
    theirs.set_nodelay()
    sent = 0
    for _ in range(200):
        sent += theirs.send(b"x")
        net.run(1)
    conns = net.ours.stack.conns
    assert conns.tcbs[ours._c].rq_bufs <= 64
    assert conns.counters()["over_share"] > 0
    good, peer, _ = net.connect()
    left, got = memoryview(payload(scaled(500_000))), 0
    start = net.clock.now()
    while len(left) or got < scaled(500_000):
        if len(left) and peer.writable():
            left = left[peer.send(left) :]
        net.run(1)
        got += take_all(good)[0]
        assert net.clock.now() - start < 10 * SEC
    total = 0
    for _ in range(20_000):
        total += take_all(ours)[0]
        if total == sent:
            break
        net.run(1, MS)
    assert total == sent


def test_idle_connections_give_up_what_they_do_not_use(network):
    net = network(config=SMALL)
    net.bind(make_provider("dmabuf", size=1 << 20))  # 256 buffers
    pairs = [net.connect()[:2] for _ in range(20)]
    for ours, theirs in pairs:
        theirs.send(payload(10_000))
        net.run(20)
        take_all(ours)
    net.run(20, 50 * MS)  # they are idle, but nobody needs what they were pledged
    busy, peer = pairs[0]
    for _ in range(20):
        peer.send(payload(10_000))
        net.run(20, MS)
        take_all(busy)
    available, _ = account(net)
    assert pledged(net, busy) > available // 4
    idle = [pledged(net, ours) for ours, _ in pairs[1:]]
    assert max(idle) <= 2
    edges = [ours.statistics()["window"] for ours, _ in pairs[1:]]
    assert min(edges) > 0  # the right edge of no window moved back
    for _, theirs in pairs[1:]:  # and all of them wake up at once: nothing is lost for good
        theirs.send(payload(5_000))
    got = [0] * len(pairs)
    for _ in range(5000):
        net.run(1, MS)
        for n, (ours, _) in enumerate(pairs[1:]):
            got[n] += take_all(ours)[0]
        if got == [5_000] * 19 + [0]:
            break
    assert got == [5_000] * 19 + [0]


def test_what_the_application_keeps_is_charged_to_its_connection(network):
    net = network(config=SMALL)
    net.bind(make_provider("dmabuf", size=1 << 20))  # 256 buffers
    ours, theirs, _ = net.connect()
    kept, left = [], memoryview(payload(600_000))
    for _ in range(600):
        if len(left) and theirs.writable():
            left = left[theirs.send(left) :]
        net.run(1)
        kept += take_all(ours, keep=True)[1]
    conns = net.ours.stack.conns
    assert conns.tcbs[ours._c].user == len(kept)
    assert 100 < len(kept) < 220  # most of the pool, and then its window is closed
    second, peer, _ = net.connect()
    peer.send(payload(20_000))
    net.until(lambda: second.queued() == 20_000, 2000)
    take_all(second)
    ours.devmem_dontneed(np.array(kept))
    assert conns.tcbs[ours._c].user == 0


def test_a_flood_of_syns_is_answered_with_cookies_and_a_real_client_gets_through(network):
    net = network(config=SMALL)
    net.bind(make_provider("dmabuf", size=1 << 20))
    net.ours.stack.listen(PORT, backlog=64)
    inject = net.link.ends[0].inject if net.link else None
    assert inject is None
    for n in range(scaled(500) + 20):
        frame = frames.tcp(src="10.0.2.99", sport=1024 + n, flags=SYN, seq=n, options=MSS_OPTION)
        net.ours.nic.wire.rx.offer(*_slot(frame))
        net.run(1)
    counters = net.ours.stack.conns.counters()
    assert counters["passive"] == 16  # a quarter of the table
    assert counters["cookies_out"] == scaled(500) + 4
    assert account(net)[1] == 0  # half open, nothing pledged
    ours, theirs, _ = net.connect()
    assert net.ours.stack.conns.counters()["cookies_in"] == 1
    tcbs = net.ours.stack.conns.tcbs
    # What the SYN offered came back in the timestamp.
    assert tcbs[ours._c].flags & (Flag.TS | Flag.WSCALE | Flag.SACK) == Flag.TS | Flag.WSCALE | Flag.SACK
    assert tcbs[ours._c].snd_scale == net.peer.stack.conns.scale
    theirs.send(payload(50_000))
    ours.send(payload(50_000))
    net.until(lambda: ours.queued() == theirs.queued() == 50_000)
    take_all(ours)


_frames_alive = []


def _slot(frame):
    """A frame in memory of its own, as a cable's queue names it."""
    memory = np.frombuffer(frame, np.uint8).copy()
    _frames_alive.append(memory)
    return memory.ctypes.data, len(frame)


def test_a_segment_that_is_no_cookie_is_not_answered_while_cookies_are_out(network):
    """It may be the second one of a client whose first was lost; afterwards it is reset again."""
    net = network(alone=True, config=TcpConfig(connections=4))
    net.ours.stack.listen(PORT)
    net.wire.inject(frames.arp())
    for port in (1000, 1001):
        net.wire.inject(frames.tcp(sport=port, flags=SYN, seq=99))
        net.run(2)
    assert net.ours.stack.conns.counters()["cookies_out"] == 1
    net.wire.sent.clear()
    net.wire.inject(frames.tcp(b"second", sport=1001, seq=500, ack=77, flags=ACK))
    net.run(2)
    assert net.ours.stack.conns.counters()["cookies_bad"] == 1
    assert not [f for f in net.wire.sent if f[47] & 4]
    net.run(1, 200 * SEC)
    net.wire.inject(frames.tcp(b"second", sport=1001, seq=500, ack=77, flags=ACK))
    net.run(2)
    assert [f for f in net.wire.sent if f[47] & 4]


@given(
    mss=st.integers(64, 9000), scale=st.integers(-1, 14), sack=st.booleans(), stamp=st.booleans(),
    seq=st.integers(0, MASK32), now=st.integers(0, 10**15), late=st.integers(0, 200 * SEC),
)  # fmt: skip
def test_a_cookie_brings_back_what_was_offered(mss, scale, sack, stamp, seq, now, late):
    jar = SynCookies(b"k" * 16)
    offer = Offer(mss, scale, sack, stamp)
    args = ip("10.0.2.15"), ip("10.0.2.2"), 40000 << 16 | 5001, seq
    cookie = jar.make(offer, *args, now)
    assert 0 <= cookie <= MASK32
    back = jar.mss(cookie, *args, now + late)
    if late < cookies.PERIOD_NS:
        assert back == max((m for m in cookies.MSS if m <= mss), default=64)
    elif late >= cookies.PERIODS * cookies.PERIOD_NS:
        assert back == 0
    assert jar.mss(cookie ^ 1, *args, now) == 0
    assert jar.mss(cookie, args[0], args[1] ^ 1, *args[2:], now) == 0
    assert SynCookies(b"l" * 16).mss(cookie, *args, now) == 0
    told = cookies.stamp(offer, now // MS & MASK32)
    echoed = cookies.offered(back, told if stamp else None)
    if back:
        jar.use(cookie, args[1], args[2], now)
        for other in range(5000):
            jar.use(other, args[1], args[2] + 1, now)
        assert jar.mss(cookie, *args, now + late) == 0  # an ACK that comes twice makes one connection
    assert echoed == (Offer(back, scale, sack, True) if stamp else Offer(back, -1, False, False))
    assert (now // MS - told) & MASK32 < 1 << 6  # never from the future


def test_more_cookies_than_can_be_remembered_are_refused_until_they_are_too_old(monkeypatch):
    monkeypatch.setattr(cookies, "USED", 10)
    jar = SynCookies(b"k" * 16)
    args = ip("10.0.2.15"), ip("10.0.2.2"), 40000 << 16 | 5001, 7
    for other in range(10):
        jar.use(other, 1, 1, 0)
    late = cookies.PERIODS * cookies.PERIOD_NS
    assert jar.mss(jar.make(Offer(1460, -1, False, False), *args, late - 1), *args, late - 1) == 0
    assert jar.mss(jar.make(Offer(1460, -1, False, False), *args, late), *args, late) == 1460


@pytest.mark.parametrize("source", ["10.0.2.15", "224.0.0.1", "0.0.0.0", "255.255.255.255"])
def test_nobody_can_send_from_such_addresses(network, source):
    """LAND (a SYN from ourselves), groups, nobody: no connection, no answer."""
    net = network(alone=True)
    net.ours.stack.listen(PORT)
    net.wire.inject(frames.tcp(src=source, sport=PORT, flags=SYN, seq=1))
    net.run(3)
    assert net.ours.stack.conns.counters()["martian"] == 1
    assert net.ours.stack.statistics()["connections"] == []
    assert not [f for f in net.wire.sent if f[12:14] == b"\x08\x00"]


def test_a_neighbour_that_the_cache_forgot_keeps_its_address_in_the_connection(network):
    net = network()
    ours, theirs, _ = net.connect()
    cache = net.ours.stack.ip.cache
    for n in range(1100):
        cache.learn(ip("10.9.0.0") + n, 0x020000000001 + n)
    assert ip(frames.THEIRS) not in cache
    net.ours.stack.conns.template(ours._c)  # as a retransmission timeout does
    ours.send(b"still there")
    net.until(theirs.queued, 50)


def test_a_receive_that_waits_for_memory_says_who_holds_it(network):
    net = network(config=SMALL)
    net.bind(make_provider("dmabuf", size=1 << 20))
    ours, theirs, _ = net.connect()
    kept, left = [], memoryview(payload(600_000))
    for _ in range(600):
        if len(left) and theirs.writable():
            left = left[theirs.send(left) :]
        net.run(1)
        kept += take_all(ours, keep=True)[1]
    with pytest.raises(TimeoutError) as error:
        ours.recvmsg_devmem(timeout=0)
    assert f"the application holds {len(kept)} of 256" in str(error.value)
    assert "window" in str(error.value)
    ours.devmem_dontneed(np.array(kept))


@pytest.mark.skipif(not COMPILED, reason="a crowd takes minutes uncompiled; the compiled run makes it")
@pytest.mark.parametrize("name", ["1,000 idle", "20 tiny, unread", "100 hostile"])
def test_a_good_connection_keeps_half_of_its_goodput_beside(name):
    """`make verify` runs all profiles."""
    alone = run(PROFILES["alone"])
    profile = PROFILES[name]
    beside = run(Profile(profile.members, profile.size, profile.unreadable))
    assert not beside.failed
    assert beside.rate >= alone.rate / 2
    assert beside.opened < 3000


def test_a_closed_stack_refuses(network):
    net = network()
    ours, _, _ = net.connect()
    ours.close()
    with pytest.raises(NetmemError) as error:
        ours.recv(1)
    assert error.value.errno == errno.EBADF
