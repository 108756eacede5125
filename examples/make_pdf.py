"""Generates a ledger of invoices as a real PDF, one invoice a page, with mistakes planted for an auditor to find.

    python examples/make_pdf.py ledger.pdf --pages 500 --seed 7

The same arguments give the same bytes. The mistakes planted are written beside it, as ledger.planted.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
from pathlib import Path

from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

KINDS = ("wrong_total", "wrong_amount", "duplicate_number", "missing_signature", "date_out_of_order")
GOODS = ("consulting hours", "cloud compute", "model tokens, million", "freight", "office chairs", "translation, pages")
PEOPLE = ("A. Lovelace", "G. Hopper", "K. Johnson", "D. Vaughan", "M. Hamilton")


def plant(pages: int, rng: random.Random) -> dict[int, str]:
    """One mistake on about every twentieth page; never on the first, which has nothing before it to contradict."""
    chosen = rng.sample(range(2, pages + 1), k=min(pages - 1, max(len(KINDS), pages // 20)))
    return {page: KINDS[n % len(KINDS)] for n, page in enumerate(chosen)}


def make(path: Path, pages: int = 500, seed: int = 7) -> list[dict[str, object]]:
    """Writes the PDF at `path`; returns what was planted as [{page, kind}], by page."""
    rng = random.Random(seed)
    planted = plant(pages, rng)
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    canvas.setTitle(f"Ledger of {pages} invoices")
    day, numbers = datetime.date(2025, 1, 1), [f"INV-{seed % 100:02}-{n:05}" for n in range(pages + 1)]
    for page in range(1, pages + 1):
        mistake = planted.get(page)
        day += datetime.timedelta(days=rng.randint(0, 2))
        dated = day - datetime.timedelta(days=rng.randint(40, 90)) if mistake == "date_out_of_order" else day
        number = numbers[rng.randrange(1, page)] if mistake == "duplicate_number" else numbers[page]
        lines = [f"Invoice {number}", f"Date {dated.isoformat()}", f"Page {page} of {pages}", ""]
        total, count = 0, rng.randint(4, 14)
        spoilt = rng.randrange(count) if mistake == "wrong_amount" else None
        for n in range(count):
            quantity, cents = rng.randint(1, 40), rng.randint(99, 99_999)
            amount = quantity * cents + (rng.randint(1, 9) * 100 if n == spoilt else 0)
            total += amount
            lines.append(f"{quantity} x {rng.choice(GOODS)} @ {money(cents)} = {money(amount)}")
        if mistake == "wrong_total":
            total += rng.choice((-1, 1)) * rng.randint(1, 9_999)
        lines += ["", f"Total {money(total)}"]
        lines.append("Signed:" if mistake == "missing_signature" else f"Signed: {rng.choice(PEOPLE)}")
        text = canvas.beginText(60, 770)
        text.setFont("Helvetica", 11)
        for line in lines:
            text.textLine(line)
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    found = [{"page": page, "kind": planted[page]} for page in sorted(planted)]
    path.with_suffix(".planted.json").write_text(json.dumps(found, indent=1))
    return found


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    planted = make(options.path, options.pages, options.seed)
    print(f"{options.path}: {options.pages} pages, {len(planted)} mistakes planted")


if __name__ == "__main__":
    main()
