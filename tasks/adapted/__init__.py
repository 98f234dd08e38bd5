"""
Agents of other frameworks, carried as they are. Each module needs its framework's extra, so name the one you serve:

    AGENTQ_AGENTS=tasks.adapted.refund_graph
"""
