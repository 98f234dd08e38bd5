-- Anomalies, as the relay learns and judges, and as people look and mute.

-- name: running
select * from agentq.tallies_running(%(max)s::int);

-- name: ended
select (f.tally).tenant, (f.tally).session_id, (f.tally).agent, (f.tally).agent_version, (f.tally).steps,
       (f.tally).failures, (f.tally).tokens, (f.tally).cost_micros, (f.tally).busy_ms, (f.tally).tools,
       (f.tally).classes, f.state, f.first_run, f.ended_at
  from agentq.tallies_ended(%(max)s::int) as f;

-- name: strays
-- What an attempt left that ended after its session had been judged.
delete from agentq.session_tally t
 where not t.due and not exists (select from agentq.session s where s.tenant = t.tenant and s.session_id = t.session_id
                                    and s.state in ('running', 'paused'));

-- name: baselines_of
select b.tenant, b.agent, b.agent_version, b.runs, b.facts
  from unnest(%(tenants)s::text[], %(agents)s::text[], %(versions)s::int[]) as w (tenant, agent, agent_version)
  join agentq.anomaly_baseline b using (tenant, agent, agent_version);

-- name: hold_baselines
-- Made where there is none, and held: of two relays the second learns after the first.
insert into agentq.anomaly_baseline as b (tenant, agent, agent_version)
select * from unnest(%(tenants)s::text[], %(agents)s::text[], %(versions)s::int[])
on conflict (tenant, agent, agent_version) do update set runs = b.runs
returning tenant, agent, agent_version, runs, facts;

-- name: learn
update agentq.anomaly_baseline b set runs = l.runs, facts = l.facts, changed_at = agentq.now()
  from jsonb_to_recordset(%(learned)s) as l (tenant text, agent text, version int, runs bigint, facts jsonb)
 where b.tenant = l.tenant and b.agent = l.agent and b.agent_version = l.version;

-- name: raise
select * from agentq.raise_anomaly(%(tenant)s, %(session)s, %(agent)s, %(version)s::int, %(measure)s, %(rule)s,
                                   %(value)s::double precision, %(low)s::double precision, %(high)s::double precision,
                                   %(runs)s::bigint, %(why)s, %(running)s, %(channels)s::text[]);

-- name: by_index
-- As for sessions (see there): row security hides from the planner how many rows there are.
select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_sort', 'off', true), set_config('enable_incremental_sort', 'off', true),
       set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: list_all
-- The newest before a place in the list, so many; their sessions are looked up one by one.
select a.tenant, a.anomaly_id, a.session_id, a.agent, a.agent_version, a.measure, a.rule, a.value, a.low, a.high, a.runs,
       a.why, a.running, a.parked, a.state, a.found_at, a.seen_at, a.muted_at, a.muted_by,
       (select s.state from agentq.session s where s.tenant = a.tenant and s.session_id = a.session_id)
  from agentq.anomaly a
 where (%(agent)s::text is null or a.agent = %(agent)s) and (%(state)s::text is null or a.state = %(state)s)
   and (a.found_at, a.anomaly_id) < (%(before_at)s, %(before_id)s::uuid) and a.found_at >= %(since)s
 order by a.found_at desc, a.anomaly_id desc limit %(limit)s;

-- name: list_tenant
select a.tenant, a.anomaly_id, a.session_id, a.agent, a.agent_version, a.measure, a.rule, a.value, a.low, a.high, a.runs,
       a.why, a.running, a.parked, a.state, a.found_at, a.seen_at, a.muted_at, a.muted_by,
       (select s.state from agentq.session s where s.tenant = a.tenant and s.session_id = a.session_id)
  from agentq.anomaly a
 where a.tenant = %(tenant)s
   and (%(agent)s::text is null or a.agent = %(agent)s) and (%(state)s::text is null or a.state = %(state)s)
   and (a.found_at, a.anomaly_id) < (%(before_at)s, %(before_id)s::uuid) and a.found_at >= %(since)s
 order by a.found_at desc, a.anomaly_id desc limit %(limit)s;

-- name: list_session
select a.tenant, a.anomaly_id, a.session_id, a.agent, a.agent_version, a.measure, a.rule, a.value, a.low, a.high, a.runs,
       a.why, a.running, a.parked, a.state, a.found_at, a.seen_at, a.muted_at, a.muted_by,
       (select s.state from agentq.session s where s.tenant = a.tenant and s.session_id = a.session_id)
  from agentq.anomaly a
 where a.session_id = %(session)s and (%(tenant)s::text is null or a.tenant = %(tenant)s)
   and (%(agent)s::text is null or a.agent = %(agent)s) and (%(state)s::text is null or a.state = %(state)s)
   and (a.found_at, a.anomaly_id) < (%(before_at)s, %(before_id)s::uuid) and a.found_at >= %(since)s
 order by a.found_at desc, a.anomaly_id desc limit %(limit)s;

-- name: list_id
-- By the beginning of an id.
select a.tenant, a.anomaly_id, a.session_id, a.agent, a.agent_version, a.measure, a.rule, a.value, a.low, a.high, a.runs,
       a.why, a.running, a.parked, a.state, a.found_at, a.seen_at, a.muted_at, a.muted_by,
       (select s.state from agentq.session s where s.tenant = a.tenant and s.session_id = a.session_id)
  from agentq.anomaly a
 where a.anomaly_id between %(low)s and %(high)s and (%(tenant)s::text is null or a.tenant = %(tenant)s)
   and (%(agent)s::text is null or a.agent = %(agent)s) and (%(state)s::text is null or a.state = %(state)s)
   and (a.found_at, a.anomaly_id) < (%(before_at)s, %(before_id)s::uuid) and a.found_at >= %(since)s
 order by a.found_at desc, a.anomaly_id desc limit %(limit)s;

-- name: set_state
update agentq.anomaly
   set state = %(state)s, muted_at = case %(state)s when 'muted' then agentq.now() end,
       muted_by = case %(state)s when 'muted' then %(operator)s end
 where tenant = %(tenant)s and anomaly_id = %(anomaly)s and state <> %(state)s
returning anomaly_id;

-- name: set_order
insert into agentq.anomaly_order (tenant, agent, measure, action, until, operator, reason)
values (%(tenant)s, %(agent)s, %(measure)s, %(action)s, agentq.now() + make_interval(secs => %(for_s)s), %(operator)s,
        %(reason)s)
on conflict (tenant, agent, measure) do update
   set action = excluded.action, until = excluded.until, operator = excluded.operator, reason = excluded.reason,
       changed_at = agentq.now();

-- name: end_order
delete from agentq.anomaly_order where tenant = %(tenant)s and agent = %(agent)s and measure = %(measure)s
returning action;

-- name: orders
select tenant, agent, measure, action, until, operator, reason, changed_at from agentq.anomaly_order
 where until is null or until > agentq.now() order by tenant, agent, measure;

-- name: baselines
select tenant, agent, agent_version, runs, facts, changed_at from agentq.anomaly_baseline
 where (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)
 order by tenant, agent, agent_version desc limit 500;

-- name: open_count
select measure, count(*) from agentq.anomaly where state = 'open' group by 1;
