"""softnic: a NIC in software with header split, RSS, steering rules and segmentation offload.

Answers to: the data sheet that this NIC does not have; ``regs`` is its register chapter.
May import: base, hw.
Frames enter from a wire's receive queue; descriptors, headers and payload leave by DMA.
"""
