# 64 MiB into a udmabuf: every byte is validated, and -L makes linear data a failure.
said ncdevmem -l -L -f eth0 -s "$LOCAL_V4" -p 5201 -v 7 -t 3 -q 1 &
listening 5201
(yes $'\x01\x02\x03\x04\x05\x06' || :) | head -c 67108864 |
  ip netns exec peer socat -u - "TCP4:$LOCAL_V4:5201" 2> /tmp/sender || :
wait $!
