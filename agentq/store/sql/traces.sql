-- Traces: their weeks, and what people read of one session.

-- name: prepare
select agentq.prepare_traces(%(ahead)s::int);

-- name: forget
select agentq.forget_traces(%(keep_days)s::int);
