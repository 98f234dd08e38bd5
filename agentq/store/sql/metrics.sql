-- Metrics: a few figures of the whole fleet, each from an index, for a scrape every few seconds.

-- name: workers
select worker_group, state, count(*), extract(epoch from agentq.now() - min(seen_at))::double precision,
       extract(epoch from min(lease_until) - agentq.now())::double precision
  from agentq.worker where state in ('live', 'draining') and role = 'steps' group by 1, 2;

-- name: paused
select coalesce(hold ->> 'kind', 'operator'), count(*) from agentq.session where state = 'paused' group by 1;

-- name: dead_letters
-- The causes with most open letters.
select left(cause, 12), class, count(*) from agentq.dead_letter where state = 'open'
 group by 1, 2 order by 3 desc limit %(top)s;

-- name: open_dead_letters
select class, count(*), extract(epoch from agentq.now() - min(died_at))::double precision
  from agentq.dead_letter where state = 'open' group by 1;

-- name: approvals
select count(*), coalesce(extract(epoch from agentq.now() - min(asked_at)), 0)::double precision
  from agentq.approval where state = 'open';

-- name: effects
select state, count(*) from agentq.effect where state = 'unknown' group by 1;

-- name: dependencies
-- The fleet's breaker of each dependency, and how many tenants' own are not closed.
select f.name, f.state, f.ok_total, f.bad_total, f.refused_total, f.openings,
       (select count(*) from agentq.dependency t
         where t.name = f.name and t.tenant <> '*' and t.state in ('open', 'half_open', 'forced_open'))
  from agentq.dependency f where f.tenant = '*' order by f.seen_at desc limit %(top)s;

-- name: deserted
-- See placement.sql.
select g.name, t.tenants
  from (select w.name from agentq.worker_groups() as w (name)
         where not exists (select from agentq.worker p where p.state = 'live' and p.role = 'steps'
                              and p.worker_group in (w.name, '*')) offset 0) g
 cross join lateral (
       select count(*) as tenants from agentq.tenant o where o.worker_group = g.name and o.state <> 'paused') t
 where t.tenants > 0;

-- name: reservations
select count(*), coalesce(extract(epoch from agentq.now() - min(at)), 0)::double precision
  from agentq.reservation where state = 'held';
