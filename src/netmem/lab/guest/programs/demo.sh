# /share/file over TCP into a udmabuf; says its SHA-256, and when it began and ended.
ncdevmem -l -f eth0 -s "$LOCAL_V4" -p 5201 -t 3 -q 1 2> /tmp/said | sha256sum > /tmp/sum &
listening 5201
start=$EPOCHREALTIME
ip netns exec peer socat -b 262144 -u OPEN:/share/file "TCP4:$LOCAL_V4:5201"
wait $!
end=$EPOCHREALTIME
echo "$(cut -d ' ' -f 1 /tmp/sum) $start $end"
