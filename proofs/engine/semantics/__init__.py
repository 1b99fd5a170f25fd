"""What statements and tile operations mean, once, over an abstract algebra of values.

It promises one meaning, of all that both can follow, for the symbolic reading of ``execution`` and the numeric one of
``interpreter``. It trusts that TileLang's tile operations do what the formulas here say, and that warps with roles may
take turns, which ``order`` shows. It imports ``base`` and ``compiler``; ``execution``, ``interpreter`` and ``layers`` may
import it.
"""
