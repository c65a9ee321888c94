"""Where work is cut for cores and caches: every tuning constant of the CPU kernels.

A thread needs this much work to be worth starting. A block is small enough to stay in a core's own cache over several
passes, and large enough that calls cost little.
"""

from __future__ import annotations

PRODUCT = 2**23  # multiplications in a matrix product that justify a thread
NUMBERS = 2**18  # numbers in an elementwise pass that justify a thread
STEP = 2**14  # numbers z per time step of an LSTM that justify a thread, which walks through all steps
DRAWS = 2**16  # logits to sample from that justify a thread
BLOCK = 2**17  # numbers in a block
BACK = 2**21  # gradients dL/dz of an LSTM that a thread holds at a time, to limit memory
LOGITS_BYTES = 9 * 2**20  # logits that a thread holds at a time: enough rows for a fast matrix product
POOLED_BYTES = 2**16  # size of a work array below which the system's allocator is just as good
