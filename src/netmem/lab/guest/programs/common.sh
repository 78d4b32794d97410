# Before every program: eth0 with split headers, three queues for everybody and the fourth for the test.
set -e -o pipefail
PATH=/usr/src/kernel/tools/testing/selftests/drivers/net/hw:$PATH
exec 9>&1
{
  ethtool -G eth0 tcp-data-split on rx 1024
  ethtool -K eth0 ntuple on
  ethtool -X eth0 equal 3
} > /tmp/ethtool 2>&1 || { cat /tmp/ethtool >&2; exit 1; }
restore() {
  ethtool -X eth0 default
  ethtool -G eth0 tcp-data-split auto rx 1024
} > /dev/null 2>&1
trap restore EXIT
# listening PORT [peer]: until somebody listens there.
listening() {
  for _ in $(seq 200); do
    ${2:+ip netns exec "$2"} ss -Htln "sport = :$1" | grep -q . && return
    sleep 0.1
  done
  echo "nobody listens at port $1" >&2
  exit 1
}
# said COMMAND...: its words only when it fails, the last of them.
said() {
  "$@" > /dev/null 2> /tmp/said || { grep -vE '^(Running|received|recvmsg|total)' /tmp/said | tail -n 3 >&2; return 1; }
}
