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

-- name: spend_by
-- What attempts used. Waste: they came to nothing, and were paid for all the same.
select case %(by)s when 'agent' then agent when 'tenant' then tenant
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
       coalesce(sum(t.cost_micros) filter (where a.closing not in ('next', 'end', 'fail') or t.detail ? 'repair'), 0)::bigint
  from agentq.trace t
  left join agentq.trace a on a.tenant = t.tenant and a.session_id = t.session_id and a.step_id = t.step_id
                          and a.fence = t.fence and a.ordinal = 0
 where t.kind <> 'attempt' and (t.cost_micros > 0 or t.tokens_in > 0 or t.tokens_out > 0)
   and t.ended_at >= agentq.now() - make_interval(secs => %(seconds)s)
   and (%(tenant)s::text is null or t.tenant = %(tenant)s) and (%(agent)s::text is null or t.agent = %(agent)s)
 group by 1 order by 6 desc, 1;

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
