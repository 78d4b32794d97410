"""A device of the kernel's opened from Python and by `netmem recv`: set up, used, and put back as it was."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).with_name("kernel_device.py")
PAGE = Path(__file__).parents[2] / "docs" / "kernel.md"
SETTINGS = """set -e
settings() { ethtool -g eth0; ethtool -x eth0 | sed '/RSS hash key/,$d'; ethtool -k eth0; ethtool -n eth0; }
settings > /tmp/before
"""
PUT_BACK = """
settings > /tmp/after; diff /tmp/before /tmp/after
test -z "$(ls /run/netmem)"
"""


@pytest.mark.parametrize("exporter", ["udmabuf", "system-heap"])
def test_set_up_used_and_put_back(lab, exporter):
    code = base64.b64encode(SCRIPT.read_bytes()).decode()
    said = lab.run(f"""
echo {code} | base64 -d > /tmp/kernel_device.py
python3 /tmp/kernel_device.py eth0 3 $LOCAL_V4 $REMOTE_V4 {exporter}
""", 240).splitlines()  # fmt: skip
    assert said[-1] == "done"
    assert "refused by the rule 'tcp-data-split is enabled'" in said[0]
    assert "ethtool -G eth0 tcp-data-split on" in said[0]
    assert [line.split(":")[0] for line in said[3:]] == [
        "undone at the end", "undone at the next start", "kept", "undone by the last", "missing", "done",
    ]  # fmt: skip


@pytest.mark.parametrize("api", ["devmem", "zcrx"])
def test_recv(lab, api):
    """Two files by `netmem recv`, one of them over IPv6."""
    said = lab.run(f"""{SETTINGS}
head -c 16000000 /dev/urandom > /tmp/sent1
head -c 3000001 /dev/urandom > /tmp/sent2
netmem recv --nic kernel:eth0 --queue 3 --api {api} --memory-size 16M --listen [::]:5700 \\
    -o '/tmp/got{{n}}' --count 2 --json > /tmp/events &
for _ in $(seq 600); do grep -q listening /tmp/events && break; sleep 0.1; done
ip netns exec peer socat -u OPEN:/tmp/sent1 TCP4:$LOCAL_V4:5700
ip netns exec peer socat -u OPEN:/tmp/sent2 "TCP6:[$LOCAL_V6]:5700"
wait $!
cmp /tmp/sent1 /tmp/got1
cmp /tmp/sent2 /tmp/got2
grep closed /tmp/events | head -1
tail -1 /tmp/events
{PUT_BACK}""", 240)  # fmt: skip
    assert '"bytes": 19000001' in said
    assert '"linear_bytes": 0' in said
    assert '"copied_bytes": 0' in said
    first = json.loads(said.splitlines()[0])
    assert first["frag_bytes"] + first["linear_bytes"] == first["bytes"] in (16_000_000, 3_000_001)
    assert len(first["bindings"]) == 1


def test_recv_is_killed(lab):
    """What it had set is undone by the next one; bytes by another queue are told of."""
    said = lab.run(f"""{SETTINGS}
netmem recv --nic kernel:eth0 --queue 2 --memory-size 4M --listen [::]:5701 > /tmp/first 2>&1 &
first=$!
for _ in $(seq 600); do grep -q listening /tmp/first && break; sleep 0.1; done
kill -9 $first
wait $first || true
settings > /tmp/between
! cmp -s /tmp/before /tmp/between
netmem recv --nic kernel:eth0 --queue 3 --memory-size 4M --listen [::]:5702 --count 1 -q > /tmp/second 2>&1 &
for _ in $(seq 600); do grep -q listening /tmp/second && break; sleep 0.1; done
ethtool -X eth0 equal 2
ethtool -n eth0 | sed -n 's/^Filter: //p' | while read -r n; do ethtool -N eth0 delete $n; done
head -c 100000 /dev/zero | ip netns exec peer socat -u - TCP4:$LOCAL_V4:5702
wait $!
cat /tmp/second
ethtool -X eth0 default
{PUT_BACK}""", 240)  # fmt: skip
    assert "undone what was left behind: tcp-data-split 2, flows over queues 0, 1, 3" in said
    assert "comes by copy: its flow is not led to queue 3" in said


@pytest.mark.parametrize("api", ["devmem", "zcrx"])
def test_recv_is_killed_in_the_middle(lab, api):
    """The sender is told, the queue has ordinary memory again, and the next one undoes the settings."""
    said = lab.run(f"""{SETTINGS}
netmem recv --nic kernel:eth0 --queue 3 --api {api} --memory-size 8M --listen [::]:5703 -o /tmp/got \\
    > /tmp/first 2>&1 &
first=$!
for _ in $(seq 600); do grep -q listening /tmp/first && break; sleep 0.1; done
(head -c 400000000 /dev/zero | ip netns exec peer socat -u - TCP4:$LOCAL_V4:5703 || echo sender failed > /tmp/sender) 2> /tmp/why &
size() {{ stat -c %s /tmp/got.partial 2> /dev/null || echo 0; }}
for _ in $(seq 600); do [ $(size) -gt 4000000 ] && break; sleep 0.05; done
kill -9 $first
wait $first || true
for _ in $(seq 600); do [ -e /tmp/sender ] && break; sleep 0.1; done
cat /tmp/sender
[ $(size) -gt 4000000 ] && [ $(size) -lt 400000000 ] && echo cut
bound() {{ netmem show --kernel eth0 --json | grep -cE '"(dmabuf|io_uring)"' || true; }}
for _ in $(seq 100); do [ $(bound) = 0 ] && break; sleep 0.2; done
echo bound $(bound)
netmem recv --nic kernel:eth0 --queue 3 --api {api} --memory-size 8M --listen [::]:5703 --count 1 -q > /tmp/second 2>&1 &
for _ in $(seq 600); do grep -q listening /tmp/second && break; sleep 0.1; done
head -c 5000000 /dev/zero | ip netns exec peer socat -u - TCP4:$LOCAL_V4:5703
wait $!
cat /tmp/second
rm -f /tmp/sender /tmp/got*
netmem leaks --kernel
{PUT_BACK}""", 240)  # fmt: skip
    assert "sender failed" in said
    assert "\ncut\nbound 0\n" in said
    assert "undone what was left behind" in said
    assert "5000000 bytes" in said
    assert "No page pool was destroyed with netmems out" in said


def test_a_live_check_puts_split_back_where_it_was_on(lab):
    """It turns it off and on, and is refused in between: settings that say the same are undone in order."""
    said = lab.run(
        """ethtool -G eth0 tcp-data-split on
netmem check --live eth0 --only R2 --format json
ethtool -g eth0 | awk '/split/ {now = $4} END {print "split", now}'
ls -A /run/netmem
ethtool -G eth0 tcp-data-split auto
ip netns add lone
netmem check --live eth0 --peer netns:lone --only R3 2>&1 || echo status $?
ip netns del lone""",
        240,
    )
    found, _, rest = said.partition("\nsplit ")
    assert json.loads(found)["requirements"]["R2"]["outcome"] == "pass"
    put_back, cannot, status = rest.splitlines()
    assert put_back == "on"
    assert "is it at the other end?" in cannot
    assert status == "status 2"


def test_the_page(lab):
    """docs/kernel.md's example, and the sender that it names.

    The test before leaves split on that is "auto" to the kernel: whoever asks for it must get it all the same.
    """
    text = PAGE.read_text()
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "open_device" in code]
    (sender,) = re.findall(r"ip netns exec peer python3 -c '.*?'", text, re.S)
    code = base64.b64encode(example.encode()).decode()
    said = lab.run(f"""{SETTINGS}
echo {code} | base64 -d > /tmp/array.py
python3 /tmp/array.py > /tmp/said 2>&1 &
for _ in $(seq 600); do ss -Htln 'sport = :5001' | grep -q . && break; sleep 0.1; done
export LOCAL_V4
{sender}
wait $!
cat /tmp/said
{PUT_BACK}""", 240)  # fmt: skip
    assert said == "listening\n(1000, 100) 100000.0\n"


HOLDER = """
import os, time, netmem
from netmem.kernel.memory import Dmabuf
device, memory = netmem.open_device("kernel:eth0"), Dmabuf(4 << 20)
device.ethtool.set_ringparam(tcp_data_split=2)
device.isolate([3])
binding = device.bind_rx([3], memory)
device.steer(5002, 3)
with device.listen(5002) as listener:
    sock = listener.accept(timeout=60)
message = sock.recvmsg_devmem(timeout=60)
print("bound", os.getpid(), flush=True)
input()
binding.close()
print("unbound", flush=True)
input()
sock.close()
device.close()
print("closed", flush=True)
"""


def test_leaks(lab):
    """Tokens that are kept: seen while the memory is bound, seen when it is not, and gone with the socket."""
    code = base64.b64encode(HOLDER.encode()).decode()
    said = lab.run(f"""{SETTINGS}
echo {code} | base64 -d > /tmp/holder.py
mkfifo /tmp/orders
python3 /tmp/holder.py < /tmp/orders > /tmp/holder.log 2>&1 &
exec 5> /tmp/orders
for _ in $(seq 600); do ss -Htln 'sport = :5002' | grep -q . && break; sleep 0.1; done
(head -c 20000 /dev/zero; sleep 30) | ip netns exec peer socat -u - TCP4:$LOCAL_V4:5002 2> /dev/null &
said() {{
    for _ in $(seq 600); do grep -q "$1" /tmp/holder.log && return; sleep 0.1; done
    cat /tmp/holder.log
    return 1
}}
said bound
netmem leaks --kernel --json
echo >&5
said unbound
netmem leaks --kernel --json || echo stuck $?
netmem leaks --kernel > /tmp/table || true
echo >&5
said closed
exec 5>&-
sleep 1.5
netmem leaks --kernel
cat /tmp/table >&2
{PUT_BACK}""", 240).splitlines()  # fmt: skip
    print(*said, sep="\n")
    bound, unbound = json.loads(said[0]), json.loads(said[1])
    (pool,) = (one for one in bound["pools"] if one["state"] == "bound")
    assert pool["inflight"] > 0
    assert pool["seconds"] is None
    for found in (bound, unbound):
        assert any("TCP" in row["what"] and ":5002" in row["what"] for row in found["holders"]), found
        assert any("dma-buf" in row["what"] and row["bytes"] == 4 << 20 for row in found["holders"]), found
    (pool,) = (one for one in unbound["pools"] if one["state"] == "destroyed")
    assert pool["seconds"] >= 0
    assert said[2] == "stuck 1"
    assert said[-1].startswith("No page pool was destroyed with netmems out")
