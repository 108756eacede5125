"""Reports that stop, come late or lie: never much worse than no reports at all?

world: shared servers with noisy neighbours, simulated. tellers: who reports what of them. compare: the runs and their
ratios. real: the same lies told to a real gateway.
"""
