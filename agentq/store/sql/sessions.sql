-- Sessions: started once per key, read by people and producers.

-- name: start
select * from agentq.start_session(%(tenant)s, %(session)s, %(agent)s, %(version)s::int, %(key)s, %(input)s, %(hash)s,
    %(step)s, %(name)s, %(attempts_max)s::int, %(timeout_s)s::real, %(priority)s::smallint,
    %(deadline_s)s::double precision, %(create_with)s::int, %(turn)s, %(on_conflict)s,
    %(trace)s::uuid, %(span)s::bigint);

-- name: add_like
select agentq.add_tenant_like(%(tenant)s, %(like)s);

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

-- name: effects
select effect_key, step_id, name, state, calls, claimed_at, settled_at, failure from agentq.effect
 where tenant = %(tenant)s and session_id = %(session)s
 order by claimed_at;

-- name: by_index
-- Row security hides from the planner how many rows a tenant sees: it expects one in two hundred, and would rather
-- read and sort the whole table than walk an index to the end. The pages below never need to.
select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_sort', 'off', true), set_config('enable_incremental_sort', 'off', true);

-- name: page_all
-- The newest sessions before a place in the list: keyset, so that page 1,000 costs what page 1 does. What no index
-- serves is looked for among the next so many of the index that serves best; the last of these comes back, matching or
-- not, to go on from.
select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, matches, nth
  from (select *, row_number() over () as nth,
               (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)
               and (%(state)s::text is null or state = %(state)s)
               and (%(text)s::text is null
                    or position(%(text)s in lower(concat(key, ' ', failure ->> 'type', ' ', failure ->> 'message') collate "C")) > 0
                    or %(within_input)s and get_byte(input, 0) >= 32
                       and position(%(text)s in lower(encode(substring(input, 1, 8192), 'escape') collate "C")) > 0) as matches
          from (select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, input
                  from agentq.session
                 where (created_at, session_id) < (%(before_at)s, %(before_id)s::uuid)
                 order by created_at desc, session_id desc limit %(look)s) next
         order by created_at desc, session_id desc) looked_at
 where matches or nth = %(look)s
 order by created_at desc, session_id desc limit %(limit)s;

-- name: page_tenant
select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, matches, nth
  from (select *, row_number() over () as nth,
               (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)
               and (%(state)s::text is null or state = %(state)s)
               and (%(text)s::text is null
                    or position(%(text)s in lower(concat(key, ' ', failure ->> 'type', ' ', failure ->> 'message') collate "C")) > 0
                    or %(within_input)s and get_byte(input, 0) >= 32
                       and position(%(text)s in lower(encode(substring(input, 1, 8192), 'escape') collate "C")) > 0) as matches
          from (select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, input
                  from agentq.session
                 where tenant = %(tenant)s and (created_at, session_id) < (%(before_at)s, %(before_id)s::uuid)
                 order by created_at desc, session_id desc limit %(look)s) next
         order by created_at desc, session_id desc) looked_at
 where matches or nth = %(look)s
 order by created_at desc, session_id desc limit %(limit)s;

-- name: page_agent
select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, matches, nth
  from (select *, row_number() over () as nth,
               (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)
               and (%(state)s::text is null or state = %(state)s)
               and (%(text)s::text is null
                    or position(%(text)s in lower(concat(key, ' ', failure ->> 'type', ' ', failure ->> 'message') collate "C")) > 0
                    or %(within_input)s and get_byte(input, 0) >= 32
                       and position(%(text)s in lower(encode(substring(input, 1, 8192), 'escape') collate "C")) > 0) as matches
          from (select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, input
                  from agentq.session
                 where agent = %(agent)s and (created_at, session_id) < (%(before_at)s, %(before_id)s::uuid)
                 order by created_at desc, session_id desc limit %(look)s) next
         order by created_at desc, session_id desc) looked_at
 where matches or nth = %(look)s
 order by created_at desc, session_id desc limit %(limit)s;

-- name: page_state
select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, matches, nth
  from (select *, row_number() over () as nth,
               (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)
               and (%(state)s::text is null or state = %(state)s)
               and (%(text)s::text is null
                    or position(%(text)s in lower(concat(key, ' ', failure ->> 'type', ' ', failure ->> 'message') collate "C")) > 0
                    or %(within_input)s and get_byte(input, 0) >= 32
                       and position(%(text)s in lower(encode(substring(input, 1, 8192), 'escape') collate "C")) > 0) as matches
          from (select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, input
                  from agentq.session
                 where state = %(state)s and (created_at, session_id) < (%(before_at)s, %(before_id)s::uuid)
                 order by created_at desc, session_id desc limit %(look)s) next
         order by created_at desc, session_id desc) looked_at
 where matches or nth = %(look)s
 order by created_at desc, session_id desc limit %(limit)s;

-- name: page_tenant_state
select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, matches, nth
  from (select *, row_number() over () as nth,
               (%(tenant)s::text is null or tenant = %(tenant)s) and (%(agent)s::text is null or agent = %(agent)s)
               and (%(state)s::text is null or state = %(state)s)
               and (%(text)s::text is null
                    or position(%(text)s in lower(concat(key, ' ', failure ->> 'type', ' ', failure ->> 'message') collate "C")) > 0
                    or %(within_input)s and get_byte(input, 0) >= 32
                       and position(%(text)s in lower(encode(substring(input, 1, 8192), 'escape') collate "C")) > 0) as matches
          from (select tenant, session_id, agent, agent_version, key, state, created_at, ended_at, failure, input
                  from agentq.session
                 where tenant = %(tenant)s and state = %(state)s and (created_at, session_id) < (%(before_at)s, %(before_id)s::uuid)
                 order by created_at desc, session_id desc limit %(look)s) next
         order by created_at desc, session_id desc) looked_at
 where matches or nth = %(look)s
 order by created_at desc, session_id desc limit %(limit)s;

-- name: page_named
-- By key, or by the beginning of its id: one look for each tenant, because the tenant leads every key. Ids begin with
-- their time, so the last ones of a tenant are its newest.
select s.tenant, s.session_id, s.agent, s.agent_version, s.key, s.state, s.created_at, s.ended_at, s.failure, true, 0
  from agentq.tenant t,
       lateral ((select * from agentq.session k where k.tenant = t.name and k.key = %(key)s
                    and (%(low)s::uuid is null or k.session_id between %(low)s and %(high)s))
                union all
                (select * from agentq.session i where %(key)s::text is null and i.tenant = t.name
                    and i.session_id between %(low)s and %(high)s
                    and (%(agent)s::text is null or i.agent = %(agent)s) and (%(state)s::text is null or i.state = %(state)s)
                    and (i.created_at, i.session_id) < (%(before_at)s, %(before_id)s::uuid)
                  order by i.session_id desc limit %(limit)s)) s
 where (%(tenant)s::text is null or t.name = %(tenant)s) and (%(agent)s::text is null or s.agent = %(agent)s)
   and (%(state)s::text is null or s.state = %(state)s)
   and (s.created_at, s.session_id) < (%(before_at)s, %(before_id)s::uuid)
 order by s.created_at desc, s.session_id desc limit %(limit)s;

-- name: parks_resumed
-- How often people let the session go on that had parked itself. Each other resume follows a pause of theirs.
select greatest(count(*) filter (where action = 'session resume') - count(*) filter (where action = 'session pause'), 0)
  from agentq.operator_action
 where tenant = %(tenant)s and target = %(session)s::uuid::text;
