"""A foreign program takes one server's CPU for a while: who notices, how soon, and who comes back?

arrivals: the script. figures: shares over time, times to move and to return, changes of mind. turn: one balancer's turn
with real agents, reporters and the hog. report: tables and targets.
"""
