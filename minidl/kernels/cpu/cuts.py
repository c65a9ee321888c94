"""Where work is cut, for the cores and for their caches: every tuning constant of the CPU's kernels.

A thread is worth its start for so much work; a block is few enough numbers for a core's own cache, over which several
passes go, and many enough that calls cost little.
"""

from __future__ import annotations

PRODUCT = 2**23  # multiplications of a matrix product that are worth a thread
NUMBERS = 2**18  # numbers to go over that are worth a thread
STEP = 2**14  # numbers z in a time step of an LSTM that are worth a thread, which goes through all steps
DRAWS = 2**16  # logits to draw from that are worth a thread
BLOCK = 2**17  # numbers in a block
BACK = 2**21  # gradients dL/dz of an LSTM that a thread holds at a time, for memory
LOGITS_BYTES = 9 * 2**20  # logits that a thread holds at a time: enough rows for a fast matrix product
POOLED_BYTES = 2**16  # of a work array: below this the system's own allocator is as good
