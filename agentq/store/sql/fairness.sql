-- Fairness: what the relay reads and writes while slots are too few for all. See agentq/policies/fairness.py.

-- name: begin
-- One relay at a time, and a few times in a second, however many there are.
select pg_try_advisory_xact_lock(1634166385, 0)
       and not exists (select from agentq.tenant where shared_at > agentq.now() - interval '0.2 s');

-- name: slots
select worker_group, coalesce(sum(slots), 0)::int from agentq.worker
 where state = 'live' and worker_group <> 'quarantine' group by worker_group;

-- name: tell
-- What steps held since they were last told of, by tenant.
insert into agentq.slot_use (holder, steps, seconds)
select * from unnest(%(holders)s::text[], %(steps)s::int[], %(seconds)s::float8[]);

-- name: used
-- What the steps that ended since the last division took, by tenant.
with gone as (delete from agentq.slot_use returning holder, steps, seconds)
select holder, sum(steps)::int, sum(seconds)::float8 from gone group by holder;

-- name: demands
-- The tenants that have work: their weight, what runs, what is admitted, and what is due besides, as far as it matters.
-- What nobody takes from the broker gets no share, which would lie idle: see agentq.is_under_way().
select t.name, t.weight::float8, coalesce(a.running, 0), coalesce(a.running_s, 0)::float8, coalesce(a.admitted, 0),
       least(t.concurrency, coalesce(a.admitted, 0) + coalesce(b.waiting, 0)), t.time_used,
       t.shared_at > agentq.now() - interval '5 s', t.worker_group
  from agentq.tenant t
  left join (select tenant, count(*)::int as admitted, (count(*) filter (where state = 'running'))::int as running,
                    sum(extract(epoch from agentq.now() - started_at)) filter (where state = 'running') as running_s
               from agentq.ledger_entry
              where state in ('queued', 'running') and agentq.is_under_way(state, queued_at, dispatches)
                and not quarantine group by tenant) a
    on a.tenant = t.name
  left join (select n.tenant, (select count(*)::int from (
                    select from agentq.ledger_entry e where e.tenant = n.tenant and e.state = 'ready'
                       and e.due_at <= agentq.now() limit %(most)s) due) as waiting
               from agentq.backlogged() n (tenant)) b
    on b.tenant = t.name
 where t.state <> 'paused' and (a.admitted is not null or b.waiting > 0)
 order by t.name;

-- name: write
update agentq.tenant t
   set allowance = s.allowance, time_used = s.time_used, shared_at = agentq.now(), shedding = s.shedding
  from jsonb_to_recordset(%(shares)s) as s (name text, allowance int, time_used float8, shedding boolean)
 where t.name = s.name;

-- name: clear
-- There is enough for all, or they have nothing to do: no allowance, and none of its shedding.
update agentq.tenant set allowance = null, shared_at = null
 where (allowance is not null or shared_at is not null) and not name = any (%(but)s::text[]);
