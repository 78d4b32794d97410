# io_uring zero-copy receive, a request for each of four sends.
OPTIONS=(-o 4)
SEND=(-z 16384)
