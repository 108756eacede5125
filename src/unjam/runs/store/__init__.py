"""Stores of runs. `base` says what each must do; the others do it, and one suite checks them all.

Nothing is imported here: who uses one store doesn't pay for the others.
"""
