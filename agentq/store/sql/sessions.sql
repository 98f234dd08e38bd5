-- Sessions: started once per key, read by people and producers.

-- name: start
select * from agentq.start_session(%(tenant)s, %(session)s, %(agent)s, %(version)s::int, %(key)s, %(input)s, %(hash)s,
    %(step)s, %(name)s, %(attempts_max)s::int, %(timeout_s)s::real, %(priority)s::smallint,
    %(deadline_s)s::double precision, %(create_with)s::int, %(turn)s, %(on_conflict)s,
    %(trace)s::uuid, %(span)s::bigint);

-- name: cancel
select * from agentq.cancel_session(%(tenant)s, %(session)s, %(failure)s);

-- name: children
select session_id from agentq.session
 where tenant = %(tenant)s and parent_session = %(session)s and state in ('running', 'paused');

-- name: get
select s.tenant, s.session_id, s.agent, s.agent_version, s.key, s.state, s.result, s.failure, s.priority,
       s.parent_session, s.created_at, s.ended_at, s.deadline_at, s.input,
       (select count(*) from agentq.checkpoint c where c.tenant = s.tenant and c.session_id = s.session_id)::int,
       u.cost_micros, u.tokens_in, u.tokens_out, s.trace_parent
  from agentq.session s,
       lateral (select coalesce(sum(c.cost_micros), 0)::bigint as cost_micros,
                       coalesce(sum(c.tokens_in), 0)::bigint as tokens_in,
                       coalesce(sum(c.tokens_out), 0)::bigint as tokens_out
                  from agentq.checkpoint c where c.tenant = s.tenant and c.session_id = s.session_id) u
 where s.tenant = %(tenant)s and s.session_id = %(session)s;

-- name: find
-- Where a session id belongs, for an operator who has only the id or its beginning.
select tenant, session_id from agentq.session
 where session_id between %(low)s and %(high)s and (%(tenant)s::text is null or tenant = %(tenant)s)
 limit 3;

-- name: states
-- Many sessions at once: a producer that waits for all of them asks once.
select s.session_id, s.state from agentq.session s
 where s.tenant = %(tenant)s and s.session_id = any (%(sessions)s::uuid[]);

-- name: state
select state from agentq.session where tenant = %(tenant)s and session_id = %(session)s;

-- name: steps
select step_id, seq, name, state, fence, attempt, attempts_max, crashes, quarantine, worker, due_at, queued_at,
       started_at, settled_at, branch, waits_for, fan, failure, repairs, refusals
  from agentq.ledger_entry
 where tenant = %(tenant)s and session_id = %(session)s
 order by seq, branch nulls first, step_id;

-- name: settled_steps
-- Steps that ended since a moment, with an overlap: commits may appear out of the order of their times.
select step_id, seq, name, state, attempt, settled_at, failure
  from agentq.ledger_entry
 where tenant = %(tenant)s and session_id = %(session)s and settled_at is not null
 order by settled_at, seq;

-- name: events
select event_id, step_id, kind, body, at from agentq.session_event
 where tenant = %(tenant)s and session_id = %(session)s and event_id > %(after)s
 order by event_id;

-- name: list
select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure
  from agentq.session
 where (%(tenant)s::text is null or tenant = %(tenant)s)
   and (%(agent)s::text is null or agent = %(agent)s)
   and (%(state)s::text is null or state = %(state)s)
   and (%(key)s::text is null or key = %(key)s)
 order by created_at desc limit %(limit)s;

-- name: effects
select effect_key, step_id, name, state, calls, claimed_at, settled_at, failure from agentq.effect
 where tenant = %(tenant)s and session_id = %(session)s
 order by claimed_at;

-- name: page
-- The newest sessions before a place in the list: keyset, so that page 1,000 costs what page 1 does.
select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure
  from agentq.session
 where (%(tenant)s::text is null or tenant = %(tenant)s)
   and (%(agent)s::text is null or agent = %(agent)s)
   and (%(state)s::text is null or state = %(state)s)
   and (%(key)s::text is null or key = %(key)s)
   and (%(low)s::uuid is null or session_id between %(low)s and %(high)s)
   and (%(before_at)s::timestamptz is null or (created_at, session_id) < (%(before_at)s, %(before_id)s::uuid))
 order by created_at desc, session_id desc limit %(limit)s;

-- name: parks_resumed
-- How often people let the session go on that had parked itself. Each other resume follows a pause of theirs.
select greatest(count(*) filter (where action = 'session resume') - count(*) filter (where action = 'session pause'), 0)
  from agentq.operator_action
 where tenant = %(tenant)s and target = %(session)s::uuid::text;
