"""
The world outside: a payment provider and a mail server, each a real server on loopback with its own record.

They stand in for companies that know nothing of agentq. Nothing here imports it.
"""
