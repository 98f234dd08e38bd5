-- Payloads sealed anew: those in plain and those under an older key, a batch at a time. `head` is how a payload begins
-- that is sealed under the present key. A row that was changed meanwhile is left alone.

-- name: stale_inputs
select session_id, input
  from agentq.session
 where tenant = %(tenant)s and input is not null and substring(input from 1 for 5) <> %(head)s
 order by session_id limit %(max)s offset %(skip)s;

-- name: reseal_inputs
update agentq.session set input = %(data)s
 where tenant = %(tenant)s and session_id = %(session_id)s and input = %(before)s;

-- name: stale_results
select session_id, result
  from agentq.session
 where tenant = %(tenant)s and result is not null and substring(result from 1 for 5) <> %(head)s
 order by session_id limit %(max)s offset %(skip)s;

-- name: reseal_results
update agentq.session set result = %(data)s
 where tenant = %(tenant)s and session_id = %(session_id)s and result = %(before)s;

-- name: stale_states
select session_id, step_id, parent, state
  from agentq.checkpoint
 where tenant = %(tenant)s and state is not null and substring(state from 1 for 5) <> %(head)s
 order by session_id, step_id limit %(max)s offset %(skip)s;

-- name: reseal_states
update agentq.checkpoint set state = %(data)s
 where tenant = %(tenant)s and session_id = %(session_id)s and step_id = %(step_id)s and state = %(before)s;

-- name: stale_step_results
select c.session_id, c.step_id, l.branch, c.result
  from agentq.checkpoint c
  left join agentq.ledger_entry l on l.tenant = c.tenant and l.session_id = c.session_id and l.step_id = c.step_id
 where c.tenant = %(tenant)s and c.result is not null and substring(c.result from 1 for 5) <> %(head)s
 order by c.session_id, c.step_id limit %(max)s offset %(skip)s;

-- name: reseal_step_results
update agentq.checkpoint set result = %(data)s
 where tenant = %(tenant)s and session_id = %(session_id)s and step_id = %(step_id)s and result = %(before)s;

-- name: stale_arguments
select session_id, step_id, path, args
  from agentq.ledger_entry
 where tenant = %(tenant)s and args is not null and substring(args from 1 for 5) <> %(head)s
 order by session_id, step_id limit %(max)s offset %(skip)s;

-- name: reseal_arguments
update agentq.ledger_entry set args = %(data)s
 where tenant = %(tenant)s and session_id = %(session_id)s and step_id = %(step_id)s and args = %(before)s;

-- name: stale_branch_results
select session_id, join_step, branch, child_session, result
  from agentq.branch
 where tenant = %(tenant)s and result is not null and substring(result from 1 for 5) <> %(head)s
 order by session_id, join_step, branch limit %(max)s offset %(skip)s;

-- name: reseal_branch_results
update agentq.branch set result = %(data)s
 where tenant = %(tenant)s and session_id = %(session_id)s and join_step = %(join_step)s and branch = %(branch)s and result = %(before)s;

-- name: stale_effects
select effect_key, result
  from agentq.effect
 where tenant = %(tenant)s and result is not null and substring(result from 1 for 5) <> %(head)s
 order by effect_key limit %(max)s offset %(skip)s;

-- name: reseal_effects
update agentq.effect set result = %(data)s
 where tenant = %(tenant)s and effect_key = %(effect_key)s and result = %(before)s;

-- name: stale_messages
select m.session_id, m.seq, m.step_id,
       (m.seq - (select min(f.seq) from agentq.message f where f.tenant = m.tenant and f.session_id = m.session_id
                    and f.step_id = m.step_id) + 1)::int, m.body
  from agentq.message m
 where m.tenant = %(tenant)s and m.body is not null and substring(m.body from 1 for 5) <> %(head)s
 order by m.session_id, m.seq limit %(max)s offset %(skip)s;

-- name: reseal_messages
update agentq.message set body = %(data)s
 where tenant = %(tenant)s and session_id = %(session_id)s and seq = %(seq)s and body = %(before)s;

-- name: stale_events
select session_id, event_id, step_id, kind, body
  from agentq.session_event
 where tenant = %(tenant)s and body is not null and substring(body from 1 for 5) <> %(head)s
 order by session_id, event_id limit %(max)s offset %(skip)s;

-- name: reseal_events
update agentq.session_event set body = %(data)s
 where tenant = %(tenant)s and session_id = %(session_id)s and event_id = %(event_id)s and body = %(before)s;

-- name: stale_memories
select namespace, key, version, digest, fields, value
  from agentq.memory
 where tenant = %(tenant)s and value is not null and substring(value from 1 for 5) <> %(head)s
 order by namespace, key, version limit %(max)s offset %(skip)s;

-- name: reseal_memories
-- With digests of its words in place of the words, and without a vector, as a memory that is written now.
with done as (
    update agentq.memory set value = %(data)s, embedding = null, embedded_by = null
     where tenant = %(tenant)s and namespace = %(namespace)s and key = %(key)s and version = %(version)s::int
       and value = %(before)s
    returning memory_id, gone_at)
select case when gone_at is null and %(words)s::text is not null
            then agentq.index_memory(memory_id, %(tenant)s, %(namespace)s, 'simple', %(words)s) end from done;

-- name: stale_approvals
select approval_id, session_id, name, effect_key, args_hash, args, question, details, edited, diff from agentq.approval
 where tenant = %(tenant)s and substring(args from 1 for 5) <> %(head)s
 order by approval_id limit %(max)s offset %(skip)s;

-- name: reseal_approvals
update agentq.approval set args = %(args)s, question = %(question)s, details = %(details)s, edited = %(edited)s,
       diff = %(diff)s
 where tenant = %(tenant)s and approval_id = %(approval_id)s and args = %(before)s and edited is not distinct from %(was)s;

-- name: stale_traces
select session_id, step_id, fence, ordinal, ended_at, input, output from agentq.trace
 where tenant = %(tenant)s
   and (substring(input from 1 for 5) <> %(head)s or substring(output from 1 for 5) <> %(head)s)
 order by session_id, step_id, fence, ordinal limit %(max)s offset %(skip)s;

-- name: reseal_traces
update agentq.trace set input = %(input)s, output = %(output)s
 where tenant = %(tenant)s and session_id = %(session_id)s and step_id = %(step_id)s and fence = %(fence)s
   and ordinal = %(ordinal)s and ended_at = %(ended_at)s;

-- name: stale_decisions
select session_id, step_id, fence, ordinal, decided_at, options, picked, why from agentq.decision
 where tenant = %(tenant)s and substring(options from 1 for 5) <> %(head)s
 order by session_id, step_id, fence, ordinal limit %(max)s offset %(skip)s;

-- name: reseal_decisions
update agentq.decision set options = %(options)s, picked = %(picked)s, why = %(why)s
 where tenant = %(tenant)s and session_id = %(session_id)s and step_id = %(step_id)s and fence = %(fence)s
   and ordinal = %(ordinal)s and decided_at = %(decided_at)s;
