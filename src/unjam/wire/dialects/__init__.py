"""What clients of different APIs expect an answer of the gateway's own to look like."""
