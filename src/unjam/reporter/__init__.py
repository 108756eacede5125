"""What tells the gateway how busy an endpoint is, beside the agent or inside it.

Lean on purpose: it runs next to every agent, so it imports nothing of unjam but the wire and the HTTP client.
"""
