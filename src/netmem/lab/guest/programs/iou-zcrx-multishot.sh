# io_uring zero-copy receive, one request for everything; the server validates the payload itself.
OPTIONS=()
SEND=(-l 12840)
