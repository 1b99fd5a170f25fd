"""What every room speaks of: errors, element types, conditions to be proved, and reports of what became of them.

It promises that a report says no more than its outcomes do: a layer holds only if every condition in it was proved.
It trusts nothing and imports no other room. Every room may import it.
"""
