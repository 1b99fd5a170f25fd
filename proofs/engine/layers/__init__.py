"""The layers of a verdict: bounds and coverage as conditions, theorems about an operator, and the layers put together.

It promises that a layer lists everything that it claims as conditions. It trusts the rooms below. It imports the rooms
above it in the table of ``docs/engine.md``; only ``verify`` and the proofs of operators import it.
"""
