# What iou-zcrx.py does, which takes NICs with combined channels only.
ethtool -G eth0 rx 64 > /dev/null
id=$(ethtool -N eth0 flow-type tcp6 dst-port 9999 action 3 | grep -o '[0-9]*$')
trap 'ethtool -N eth0 delete $id; restore' EXIT
said iou-zcrx -s -p 9999 -i eth0 -q 3 "${OPTIONS[@]}" &
listening 9999
said ip netns exec peer "$(command -v iou-zcrx)" -c -h "$LOCAL_V6" -p 9999 "${SEND[@]}"
wait $!
