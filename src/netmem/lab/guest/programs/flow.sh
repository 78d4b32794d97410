# A plain TCP flow of MEGABYTES from FROM (guest or peer) to the other side; both ends compare sums.
here() { "$@"; }
there() { ip netns exec peer "$@"; }
if [ "$FROM" = guest ]; then out=here in=there to=$REMOTE_V4; else out=there in=here to=$LOCAL_V4; fi
head -c 1000000 /dev/urandom > /tmp/part
rm -f /tmp/sum
$in socat -T 60 -u TCP4-LISTEN:5300,reuseaddr - | sha256sum > /tmp/sum &
for _ in $(seq 200); do $in ss -Htln 'sport = :5300' | grep -q . && break; sleep 0.05; done
echo begin
for _ in $(seq "$MEGABYTES"); do cat /tmp/part; done | tee >(sha256sum > /tmp/sent) | $out socat -T 60 -u - "TCP4:$to:5300"
wait $!
sleep 0.2
cmp /tmp/sum /tmp/sent
