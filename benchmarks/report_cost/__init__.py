"""What reports cost: the sidecar beside an agent, and a gateway to which a thousand endpoints report.

reports: many reporters in one process. __main__: the three measurements.
"""
