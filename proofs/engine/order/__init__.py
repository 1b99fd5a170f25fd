"""The order of what a kernel does: which accesses of two threads are ordered, and by what.

It promises that two accesses that may touch the same byte, one of them a write, are ordered on every run, or are refused.
It trusts that barriers, fences and waits do what PTX says. It imports ``access``; ``layers`` may import it.
"""
