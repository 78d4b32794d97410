# Lines out of a udmabuf (bind-tx, MSG_ZEROCOPY); what arrives is compared.
head -c 100000 /dev/urandom | base64 -w 1000 > /tmp/sent
ip netns exec peer socat -u TCP4-LISTEN:5202 OPEN:/tmp/got,creat,trunc &
listening 5202 peer
said ncdevmem -f eth0 -s "$REMOTE_V4" -p 5202 < /tmp/sent
wait $!
cmp /tmp/sent /tmp/got
