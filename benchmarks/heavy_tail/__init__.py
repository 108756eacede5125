"""Real endpoints with hard slots, mixed work, and the same arrival script through every balancer.

arrivals: the script. references: what an ideal queue would have done with it. endpoints: the servers. drive: the
open-loop client. report: figures, targets, tables.
"""
