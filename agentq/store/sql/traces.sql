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
       coalesce(sum(cost_micros) filter (where closing not in ('next', 'end', 'fail')), 0)::bigint
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

-- name: spend_by
-- What attempts used. Waste: they came to nothing, and were paid for all the same.
select case %(by)s when 'agent' then agent when 'tenant' then tenant when 'session' then session_id::text
                   else to_char(ended_at at time zone 'UTC', 'YYYY-MM-DD') end as of,
       count(*), count(distinct session_id), sum(tokens_in)::bigint, sum(tokens_out)::bigint, sum(cost_micros)::bigint,
       coalesce(sum(cost_micros) filter (where closing not in ('next', 'end', 'fail')), 0)::bigint
  from agentq.trace
 where kind = 'attempt' and (cost_micros > 0 or tokens_in > 0 or tokens_out > 0)
   and ended_at >= agentq.now() - make_interval(secs => %(seconds)s)
   and (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)
 group by 1 order by 6 desc, 1;

-- name: spend_by_model
-- What model requests used, by model. The rest of the attempts' usage was not told apart.
select coalesce(t.detail ->> 'model', t.name), count(*), count(distinct t.session_id), sum(t.tokens_in)::bigint,
       sum(t.tokens_out)::bigint, sum(t.cost_micros)::bigint,
       coalesce(sum(t.cost_micros) filter (where a.closing not in ('next', 'end', 'fail') or t.detail ? 'repair'), 0)::bigint,
       coalesce(sum(case when jsonb_typeof(t.detail -> 'cached_tokens') = 'number'
                         then (t.detail -> 'cached_tokens')::numeric end), 0)::bigint,
       coalesce(sum(extract(epoch from t.ended_at - t.started_at)), 0)::double precision
  from agentq.trace t
  left join agentq.trace a on a.tenant = t.tenant and a.session_id = t.session_id and a.step_id = t.step_id
                          and a.fence = t.fence and a.ordinal = 0
 where t.kind <> 'attempt' and (t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0)
   and t.ended_at >= agentq.now() - make_interval(secs => %(seconds)s)
   and (%(tenant)s::text is null or t.tenant = %(tenant)s) and (%(agent)s::text is null or t.agent = %(agent)s)
 group by 1 order by 6 desc, 1;

-- name: spend_untold
-- Reserved calls that no event of their attempt tells of, by model: steps that do not trace them, and attempts
-- that were lost. Only where they fit into what the events leave of the attempt's usage, so that none counts twice.
with attempt as materialized (
    select tenant, session_id, step_id, fence, tokens_in, tokens_out, cost_micros,
           closing not in ('next', 'end', 'fail') as wasted
      from agentq.trace
     where kind = 'attempt' and (cost_micros > 0 or tokens_in > 0 or tokens_out > 0)
       and ended_at >= agentq.now() - make_interval(secs => %(seconds)s)
       and (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)
), told as (
    select tenant, session_id, step_id, fence, sum(t.tokens_in) as tokens_in, sum(t.tokens_out) as tokens_out,
           sum(t.cost_micros) as cost_micros, array_agg(coalesce(t.detail ->> 'model', t.name)) as models
      from agentq.trace t
     where t.kind <> 'attempt' and (t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0)
       and t.ended_at >= agentq.now() - make_interval(secs => %(seconds)s)
       and (%(tenant)s::text is null or t.tenant = %(tenant)s)
     group by tenant, session_id, step_id, fence
), charge as (
    select session_id, r.model, r.used_input, r.used_output, r.used_cached, r.charged_micros, a.wasted,
           a.tokens_in - coalesce(e.tokens_in, 0) >= sum(r.used_input) over attempts
           and a.tokens_out - coalesce(e.tokens_out, 0) >= sum(r.used_output) over attempts
           and a.cost_micros - coalesce(e.cost_micros, 0) >= sum(coalesce(r.charged_micros, 0)) over attempts as fits
      from attempt a
      join agentq.reservation r using (tenant, session_id, step_id, fence)
      left join told e using (tenant, session_id, step_id, fence)
     where r.state in ('charged', 'uncertain') and (e.models is null or r.model <> all (e.models))
    window attempts as (partition by tenant, session_id, step_id, fence)
)
select model, count(*), count(distinct session_id), sum(used_input)::bigint, sum(used_output)::bigint,
       coalesce(sum(charged_micros), 0)::bigint, coalesce(sum(charged_micros) filter (where wasted), 0)::bigint,
       coalesce(sum(used_cached), 0)::bigint
  from charge where fits group by model;

-- name: spend_by_tool
-- Calls of tools, by tool, and the time that they took. What was recalled was not called.
select name, count(*) filter (where not recalled), count(distinct session_id), sum(tokens_in)::bigint,
       sum(tokens_out)::bigint, sum(cost_micros)::bigint, 0::bigint, 0::bigint,
       coalesce(sum(extract(epoch from ended_at - started_at)) filter (where not recalled), 0)::double precision,
       count(*) filter (where recalled),
       coalesce(sum(extract(epoch from ended_at - started_at)) filter (where detail -> 'sandbox' = 'true' and not recalled),
                0)::double precision
  from (select t.*, coalesce(detail ->> 'outcome' = 'recalled', false) as recalled from agentq.trace t
         where kind = 'tool' and ended_at >= agentq.now() - make_interval(secs => %(seconds)s)
           and (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)) calls
 group by name order by 9 desc, 1;

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
