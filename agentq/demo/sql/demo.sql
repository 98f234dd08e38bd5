-- What the demo reads of its own run. `run` is the beginning of its sessions' keys.

-- name: progress
-- Per tenant: tickets, those that have ended, and steps recorded so far.
select s.tenant, count(*)::int, (count(*) filter (where s.ended_at is not null))::int,
       coalesce(sum(e.settled), 0)::int
  from agentq.session s,
       lateral (select count(*) filter (where l.state = 'done') as settled from agentq.ledger_entry l
                 where l.tenant = s.tenant and l.session_id = s.session_id) e
 where starts_with(s.key, %(run)s)
 group by s.tenant order by s.tenant;

-- name: in_hand
-- The steps of this run that each worker process has in hand.
select w.pid, array_agg(l.session_id), array_agg(l.step_id), array_agg(l.fence)
  from agentq.worker w
  join agentq.ledger_entry l on l.worker = w.worker_id and l.state = 'running'
  join agentq.session s on s.tenant = l.tenant and s.session_id = l.session_id
 where starts_with(s.key, %(run)s) and w.state = 'live' and w.worker_group = 'default'
 group by w.pid;

-- name: uptime
-- How long Postgres has been up. Right after its start a missing liveness lock says nothing about a worker.
select extract(epoch from clock_timestamp() - pg_postmaster_start_time())::double precision;

-- name: since
-- Of these steps: how many have begun again under a later fence, and how many have ended.
select (count(*) filter (where l.fence > was.fence or l.settled_at is not null))::int,
       (count(*) filter (where l.settled_at is not null))::int
  from unnest(%(steps)s::uuid[], %(fences)s::int[]) as was (step_id, fence)
  join agentq.ledger_entry l on l.step_id = was.step_id;

-- name: waiting
-- Steps of this run whose message is with the broker and not yet claimed.
select coalesce(array_agg(l.session_id), '{}'), coalesce(array_agg(l.step_id), '{}'), coalesce(array_agg(l.fence), '{}')
  from agentq.ledger_entry l
  join agentq.session s on s.tenant = l.tenant and s.session_id = l.session_id
 where l.state = 'queued' and starts_with(s.key, %(run)s);

-- name: ended
select substr(s.key, length(%(run)s) + 1), s.tenant, s.session_id, s.state, s.result, s.failure ->> 'message'
  from agentq.session s
 where starts_with(s.key, %(run)s)
 order by s.key;

-- name: totals
-- Steps recorded, attempts beyond the first by cause, calls repeated, and what the models took.
with run as (
    select s.tenant, s.session_id from agentq.session s where starts_with(s.key, %(run)s)
), mine as (
    select l.* from agentq.ledger_entry l join run using (tenant, session_id)
)
select (select count(*) from mine l where l.state = 'done')::int,
       (select coalesce(sum(l.crashes), 0) from mine l)::int,
       (select coalesce(sum(greatest(l.attempt - 1, 0)), 0) from mine l)::int,
       (select coalesce(sum(f.calls - 1), 0) from agentq.effect f join run using (tenant, session_id))::int,
       coalesce(sum(c.tokens_in), 0)::bigint, coalesce(sum(c.tokens_out), 0)::bigint,
       coalesce(sum(c.cost_micros), 0)::bigint
  from agentq.checkpoint c join run using (tenant, session_id);
