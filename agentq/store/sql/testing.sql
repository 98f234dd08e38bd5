-- What the test kit asks.

-- name: next_due
-- Seconds until something of this tenant happens: a timer or a retry is due, or a deadline passes.
-- Null: nothing will.
select extract(epoch from min(at) - agentq.now())::double precision from (
    select min(due_at) as at from agentq.ledger_entry where tenant = %(tenant)s and state in ('ready', 'queued')
    union all
    select min(deadline_at) from agentq.session where tenant = %(tenant)s and state in ('running', 'paused')) next;
