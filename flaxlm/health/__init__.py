"""What `python -m flaxlm.doctor` looks at: one file for each part of a machine that a run needs.

Nothing but `trial.py`, which runs in a process of its own, imports jax or anything that may be
broken before a check asks for it.
"""
