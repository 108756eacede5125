"""Measurements of unjam beside other balancers; see benchmarks/README.md."""
