"""The door to TileLang: the IR of a kernel at each stage of its lowering, as data, and its text and source lines.

It promises that what is read is what ships: the same passes, options and target as the build. It trusts TileLang's
passes, version by version. It imports only ``base``; ``semantics``, ``access``, ``order``, ``layers``, ``guards`` and
``emitted`` may import it.
"""
