-- Traces: their weeks, and what people read of one session.

-- name: prepare
select agentq.prepare_traces(%(ahead)s::int);

-- name: forget
select agentq.forget_traces(%(keep_days)s::int);

-- name: of_session
-- `since` is the session's beginning, so that older weeks are not looked at.
select step_id, fence, ordinal, kind, name, agent, agent_version, seq, branch, attempt, queued_at, started_at, ended_at,
       closing, failure, worker, leads_to, tokens_in, tokens_out, cost_micros, detail, input, output
  from agentq.trace
 where tenant = %(tenant)s and session_id = %(session)s and ended_at >= %(since)s
 order by started_at, seq, step_id, fence, ordinal
 limit %(max)s;

-- name: end_of_session
-- The last rows, the latest first.
select step_id, fence, ordinal, kind, name, agent, agent_version, seq, branch, attempt, queued_at, started_at, ended_at,
       closing, failure, worker, leads_to, tokens_in, tokens_out, cost_micros, detail, input, output
  from agentq.trace
 where tenant = %(tenant)s and session_id = %(session)s and ended_at >= %(since)s
 order by started_at desc, seq desc, step_id desc, fence desc, ordinal desc
 limit %(max)s;

-- name: totals
-- What all attempts of a session came to.
select count(*), coalesce(sum(tokens_in), 0)::bigint, coalesce(sum(tokens_out), 0)::bigint,
       coalesce(sum(cost_micros), 0)::bigint,
       coalesce(sum(case when closing not in ('next', 'end', 'fail') then cost_micros
                         else (detail ->> 'repair_micros')::bigint end), 0)::bigint,
       coalesce(sum(case closing when 'repair' then 1 else (detail ->> 'repairs')::bigint end), 0)::bigint,
       coalesce(sum(case closing when 'repair' then cost_micros else (detail ->> 'repair_micros')::bigint end), 0)::bigint
  from agentq.trace
 where tenant = %(tenant)s and session_id = %(session)s and ended_at >= %(since)s and kind = 'attempt';

-- name: decisions
select step_id, fence, ordinal, decided_at, step, options, picked, why, confidence, limits, approver
  from agentq.decision
 where tenant = %(tenant)s and session_id = %(session)s and decided_at >= %(since)s
 order by decided_at, ordinal limit %(max)s;

-- name: checkpoints
-- The branch tells whose result it is.
select c.step_id, c.kind, c.parent, c.state, c.result, c.agent_version, c.saved_at, c.cost_micros, c.tokens_in,
       c.tokens_out, l.branch
  from agentq.checkpoint c
  left join agentq.ledger_entry l on l.tenant = c.tenant and l.session_id = c.session_id and l.step_id = c.step_id
 where c.tenant = %(tenant)s and c.session_id = %(session)s
 order by c.saved_at limit %(max)s;

-- name: beginnings
-- What each step began from: a checkpoint, or the session's input where there is none; and its arguments.
select step_id, state_from, args, path from agentq.ledger_entry
 where tenant = %(tenant)s and session_id = %(session)s limit %(max)s;

-- name: family
-- The sessions of one trace: the root, and all that it led to.
select session_id, parent_session, agent, agent_version, state, created_at, ended_at from agentq.session
 where tenant = %(tenant)s and (session_id = %(trace)s or trace_id = %(trace)s)
 order by created_at, session_id limit 500;

-- name: trace_id
select coalesce(trace_id, session_id) from agentq.session where tenant = %(tenant)s and session_id = %(session)s;

-- name: charged
-- What the session's reserved calls came to, by attempt and model.
select step_id, fence, model, count(*), sum(used_input)::bigint, sum(used_output)::bigint, coalesce(sum(charged_micros), 0)::bigint,
       coalesce(sum(used_cached), 0)::bigint
  from agentq.reservation
 where tenant = %(tenant)s and session_id = %(session)s and state in ('charged', 'uncertain')
 group by step_id, fence, model order by step_id, fence, model;

-- name: spend_since
select agentq.spend_since(%(seconds)s::double precision);

-- name: spend
-- What was used, by several things at once and as of one moment: from the days and hours that are summed up, and from
-- the traces what is not yet, or is part of an hour. Waste: attempts came to nothing, and were paid for all the same;
-- and repairs.
-- A long window begins with a whole day, so that it needs no hours that are forgotten by then.
with span as materialized (
    select w.since, date_trunc('hour', w.since + interval '1 hour' - interval '1 microsecond', 'UTC') as first,
           coalesce(m.rolled_until, '-infinity') as rolled, case when %(long)s then m.days_until end as days
      from (select %(since)s::timestamptz as since) w left join agentq.spend_mark m on true
), raw as materialized (
    select r.* from span s
     cross join lateral (
        select greatest(s.since, s.rolled) as since, 'infinity'::timestamptz as until
        union all
        select s.since, least(s.first, s.rolled) where s.since < least(s.first, s.rolled)) part
     cross join lateral agentq.spend_lines(part.since, part.until, %(tenant)s, null, 'tool' = any (%(by)s)) r
), attempt as materialized (
    select r.* from raw r where r.kind = 'attempt' and (%(agent)s::text is null or r.agent = %(agent)s)
    union all
    select h.* from span s, agentq.spend_hour h
     where h.kind = 'attempt' and h.starts_at >= greatest(s.first, s.days)
       and (%(tenant)s::text is null or h.tenant = %(tenant)s) and (%(agent)s::text is null or h.agent = %(agent)s)
    union all
    select d.* from span s, agentq.spend_day d
     where d.kind = 'attempt' and d.starts_at >= s.first and d.starts_at < s.days
       and (%(tenant)s::text is null or d.tenant = %(tenant)s) and (%(agent)s::text is null or d.agent = %(agent)s)
), part as (
    -- Of models and tools, all tenants together are a tenant of their own.
    select r.* from raw r
    union all
    select h.* from span s, agentq.spend_hour h
     where h.kind = any (%(parts)s::text[]) and h.starts_at >= greatest(s.first, s.days)
       and h.tenant = coalesce(%(tenant)s::text, '*')
    union all
    select d.* from span s, agentq.spend_day d
     where d.kind = any (%(parts)s::text[]) and d.starts_at >= s.first and d.starts_at < s.days
       and d.tenant = coalesce(%(tenant)s::text, '*')
), named as (
    -- Each of its own, so that nothing is added up which is not asked for.
    select 'tenant' as by, l.tenant as of, sum(l.uses) as uses, sum(l.sessions) as sessions, sum(l.tokens_in) as tokens_in,
           sum(l.tokens_out) as tokens_out, sum(l.cost_micros) as cost_micros, sum(l.waste_micros) as waste_micros,
           sum(l.tokens_cached) as tokens_cached, sum(l.took_us) as took_us, sum(l.recalled) as recalled,
           sum(l.sandbox_us) as sandbox_us, sum(l.repairs) as repairs, sum(l.repair_micros) as repair_micros
      from attempt l where 'tenant' = any (%(by)s) group by l.tenant
    union all
    select 'agent', l.agent, sum(l.uses), sum(l.sessions), sum(l.tokens_in), sum(l.tokens_out), sum(l.cost_micros),
           sum(l.waste_micros), sum(l.tokens_cached), sum(l.took_us), sum(l.recalled), sum(l.sandbox_us), sum(l.repairs),
           sum(l.repair_micros)
      from attempt l where 'agent' = any (%(by)s) group by l.agent
    union all
    select 'day', to_char(date_trunc('day', l.starts_at, 'UTC') at time zone 'UTC', 'YYYY-MM-DD'), sum(l.uses),
           sum(l.sessions), sum(l.tokens_in), sum(l.tokens_out), sum(l.cost_micros), sum(l.waste_micros),
           sum(l.tokens_cached), sum(l.took_us), sum(l.recalled), sum(l.sandbox_us), sum(l.repairs), sum(l.repair_micros)
      from (select a.starts_at, sum(a.uses) as uses, sum(a.sessions) as sessions, sum(a.tokens_in) as tokens_in,
                   sum(a.tokens_out) as tokens_out, sum(a.cost_micros) as cost_micros,
                   sum(a.waste_micros) as waste_micros, sum(a.tokens_cached) as tokens_cached, sum(a.took_us) as took_us,
                   sum(a.recalled) as recalled, sum(a.sandbox_us) as sandbox_us, sum(a.repairs) as repairs,
                   sum(a.repair_micros) as repair_micros
              from attempt a where 'day' = any (%(by)s) group by a.starts_at) l  -- few; then days of these
     group by date_trunc('day', l.starts_at, 'UTC')
    union all
    select l.kind, l.name, sum(l.uses), sum(l.sessions), sum(l.tokens_in), sum(l.tokens_out), sum(l.cost_micros),
           sum(l.waste_micros), sum(l.tokens_cached), sum(l.took_us), sum(l.recalled), sum(l.sandbox_us), sum(l.repairs),
           sum(l.repair_micros)
      from part l
     where l.kind = any (%(parts)s::text[]) and (%(agent)s::text is null or l.agent = %(agent)s)
     group by l.kind, l.name
)
select by, of, uses::bigint, sessions::bigint, tokens_in::bigint, tokens_out::bigint, cost_micros::bigint, waste_micros::bigint,
       tokens_cached::bigint, took_us::double precision / 1000000, recalled::bigint, sandbox_us::double precision / 1000000,
       repairs::bigint, repair_micros::bigint
  from named
 where by = any (%(by)s)
   and (uses <> 0 or recalled <> 0 or tokens_in <> 0 or tokens_out <> 0 or cost_micros <> 0)
 order by by, case by when 'tool' then took_us else cost_micros end desc, of;

-- name: spend_by_session
-- The dearest sessions of a window, from what is summed up of each.
select session_id::text, uses, sessions, tokens_in, tokens_out, cost_micros, waste_micros, 0::bigint, 0::float8, 0::bigint,
       0::float8, repairs, repair_micros
  from agentq.spend_of_sessions(%(since)s, %(tenant)s, %(agent)s, %(limit)s::int);

-- name: roll_spend
select agentq.roll_spend(%(grace_s)s::double precision);

-- name: export_begin
-- The export's place, held until the transaction ends, so that one process exports at a time.
insert into agentq.trace_export (name, ended_at, session_id)
values (%(name)s, agentq.now(), '00000000-0000-0000-0000-000000000000')
on conflict (name) do nothing;

-- name: export_place
select ended_at, session_id from agentq.trace_export where name = %(name)s for update skip locked;

-- name: export_next
-- Sessions that ended after the place; a little late, because commits do not come in the order of their times.
select s.tenant, s.session_id, s.ended_at, t.trace_content
  from agentq.session s join agentq.tenant t on t.name = s.tenant
 where s.ended_at is not null and (s.ended_at, s.session_id) > (%(ended_at)s, %(session)s)
   and s.ended_at < agentq.now() - make_interval(secs => %(late_s)s)
 order by s.ended_at, s.session_id limit %(max)s;

-- name: export_move
update agentq.trace_export set ended_at = %(ended_at)s, session_id = %(session)s where name = %(name)s;
