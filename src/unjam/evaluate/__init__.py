"""What is wrong with an answer, found out off the gateway's loop: built-in checks, functions of the user's, HTTP hooks.

    def grounded(record: Record) -> bool:
        return "[1]" in record.text

Lean on purpose: it runs in a process of its own, beside what the user's functions import.
"""

from unjam.evaluate.record import Record, Verdict

__all__ = ["Record", "Verdict"]
