# Receives MEGABYTES in each of five ways, ROUNDS times, one after the other; "way bytes linear seconds" each.
rx=/usr/src/netmem/rx
ethtool -N eth0 flow-type tcp4 dst-port 5400 action 3 > /tmp/rule
trap 'ethtool -N eth0 delete $(grep -o "[0-9]*$" /tmp/rule); restore' EXIT
cd /usr/src/kernel/tools/testing/selftests/drivers/net
for _ in $(seq "$ROUNDS"); do
  for way in recv devmem python zcrx zcrx_python; do
    case $way in
      recv) $rx recv 5400 > /tmp/did & ;;
      devmem) python3 /usr/src/netmem/bind.py eth0 3 64 $rx devmem 5400 > /tmp/did & ;;
      python) python3 /usr/src/netmem/rx.py devmem eth0 3 64 5400 > /tmp/did & ;;
      zcrx_python) python3 /usr/src/netmem/rx.py zcrx eth0 3 64 5400 > /tmp/did & ;;
      zcrx) $rx zcrx 5400 eth0 3 > /tmp/did & ;;
    esac
    listening 5400
    ip netns exec peer $rx send "$LOCAL_V4" 5400 "$((MEGABYTES * 1000000))"
    wait $!
    echo "$way $(cat /tmp/did)"
  done
done
