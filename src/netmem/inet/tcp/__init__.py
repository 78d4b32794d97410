"""TCP: one connection table, a fast path in kernels, everything else in a readable state machine.

Answers to: RFC 9293 (TCP), 7323 (timestamps, window scale), 6298 (RTO), 5681 and 6582 (NewReno).
May import: base, memory, netdev, inet.
Read tcb.py (the table), kernels.py (fast path), machine.py (state machine), output.py, in that order.
"""
