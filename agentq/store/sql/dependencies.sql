-- Dependencies: the calls from Python. What each does, and why, stands with its function.

-- name: report
select * from agentq.report_dependencies(%(reports)s, %(rules)s);

-- name: claim_probe
select * from agentq.claim_probe(%(tenant)s, %(name)s, %(probe)s, %(worker)s, %(rules)s);

-- name: end_probe
select agentq.end_probe(%(tenant)s, %(name)s, %(probe)s, %(answer)s, %(retry_after_s)s::double precision,
                        %(failure)s, %(rules)s);

-- name: force
select * from agentq.force_dependency(%(tenant)s, %(name)s, %(state)s, %(for_s)s::double precision, %(why)s,
                                      %(rules)s);

-- name: ls
select d.name, nullif(d.tenant, '*'), d.state, d.changed_at, d.seen_at, case d.state when 'open' then d.probe_at end,
       d.forced_until, d.pause_s, d.good, coalesce(w.ok, 0), coalesce(w.bad, 0), d.ok_total, d.bad_total,
       d.refused_total, d.openings, d.last_failure
  from agentq.dependency d
  left join (select tenant, name, sum(ok) as ok, sum(bad) as bad from agentq.dependency_window group by tenant, name) w
    on w.tenant = d.tenant and w.name = d.name
 where %(name)s::text is null or d.name = %(name)s
 order by d.name, d.tenant <> '*', d.tenant;

-- name: changes
select at, name, nullif(tenant, '*'), state, why from agentq.dependency_change
 where name = %(name)s order by change_id desc limit %(limit)s;

-- name: out_of_order
-- Breakers of these tenants' own that hold calls back.
select tenant, name, state from agentq.dependency
 where tenant = any (%(tenants)s::text[]) and state in ('open', 'half_open', 'forced_open') order by tenant, name;
