"""Public kernels that the engine is tried on: our contracts for them, and the tool that makes the table of verdicts.

The kernels are those of packages of others, found where they are installed or unpacked; nothing of them is kept here.
``python -m public_kernels FOLDER...``, run in tests/, proves them and writes ``docs/public_kernels.json``.
"""
