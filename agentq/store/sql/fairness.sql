-- Fairness: what the relay reads and writes while slots are too few for all. See agentq/policies/fairness.py.

-- name: begin
-- One relay at a time, and a few times in a second, however many there are.
select pg_try_advisory_xact_lock(1634166385, 0)
       and not exists (select from agentq.tenant where sharing and shared_at > agentq.now() - interval '0.2 s');

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
with admitted as (
    select tenant, count(*)::int as steps, (count(*) filter (where state = 'running'))::int as running,
           coalesce(sum(extract(epoch from agentq.now() - started_at)) filter (where state = 'running'), 0) as running_s
      from agentq.ledger_entry
     where state in ('queued', 'running') and agentq.is_under_way(state, queued_at, dispatches, (select agentq.now()))
       and not quarantine group by tenant),
-- Added up rather than joined: of how many there are in either, no plan has an idea.
there as materialized (
    select p.tenant, sum(p.steps)::int as admitted, sum(p.running)::int as running, sum(p.running_s)::float8 as running_s
      from (select a.tenant, a.steps, a.running, a.running_s from admitted a
            union all
            select b.tenant, 0, 0, 0 from agentq.backlogged() b (tenant)) p group by p.tenant)
select t.name, t.weight::float8, h.running, h.running_s, h.admitted, least(t.concurrency, h.admitted + d.waiting),
       t.time_used, t.shared_at > (select agentq.now()) - interval '5 s', t.worker_group
  from there h
  join agentq.tenant t on t.name = h.tenant
 cross join lateral (
       select count(*)::int as waiting from (
              select from agentq.ledger_entry e
               where e.tenant = h.tenant and e.state = 'ready' and e.due_at <= (select agentq.now())
               limit least(%(most)s, t.concurrency)) due) d
 where t.state <> 'paused' and (h.admitted > 0 or d.waiting > 0)
 order by t.name;

-- name: write
-- Only what has changed: of a thousand tenants that wait for a few slots, nearly all keep what they had. Whoever ran
-- something is among them, or its time would be lost; all of them now and then, because an allowance is good for five
-- seconds; and always one, by which the next relay sees that slots were divided just now.
update agentq.tenant t
   set allowance = s.allowance, time_used = s.time_used, shared_at = agentq.now(), shedding = s.shedding, sharing = true
  from jsonb_to_recordset(%(shares)s) as s (name text, allowance int, time_used float8, shedding boolean)
 where t.name = s.name
   and (t.allowance is distinct from s.allowance or t.shedding <> s.shedding or not t.sharing
        or t.shared_at is null or t.shared_at < agentq.now() - interval '2 s' or s.name = any (%(ran)s::text[]));

-- name: clear
-- There is enough for all, or they have nothing to do: no allowance, and none of its shedding.
update agentq.tenant t set allowance = null, shared_at = null, sharing = false
 where t.sharing and not exists (select from unnest(%(but)s::text[]) as but (name) where but.name = t.name);
