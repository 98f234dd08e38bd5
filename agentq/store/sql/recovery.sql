-- Pausing, resuming, killing and reopening sessions. What each does stands with its function.

-- name: pause
select * from agentq.pause_session(%(tenant)s, %(session)s, %(hold)s);

-- name: resume
select * from agentq.resume_session(%(tenant)s, %(session)s);

-- name: kill
select * from agentq.kill_session(%(tenant)s, %(session)s, %(failure)s);

-- name: reopen
select * from agentq.reopen_session(%(tenant)s, %(session)s, %(step)s, %(copy)s, %(generation)s::int, %(state)s,
    %(edit)s::uuid, %(deadline_s)s::double precision);

-- name: paused_with
-- The children that were paused together with this session.
select session_id from agentq.session
 where tenant = %(tenant)s and parent_session = %(session)s and state = 'paused' and hold ->> 'with' = %(session)s::text;

-- name: fork
select agentq.fork_session(%(tenant)s, %(session)s, %(step)s, %(fork)s, %(copy)s, %(input)s, %(hash)s, %(dry)s,
    %(deadline_s)s::double precision);

-- name: standing
-- What a replay must know of a session: whose it is, how often it was reopened, and when it must have ended.
select agent, agent_version, state, generation, deadline_at <= agentq.now()
  from agentq.session where tenant = %(tenant)s and session_id = %(session)s;

-- name: places
-- The steps that a replay or a fork may go back to, in order.
select step_id, seq, branch, name, state, attempt
  from agentq.ledger_entry
 where tenant = %(tenant)s and session_id = %(session)s and superseded is null
 order by seq, branch nulls first, step_id;

-- name: state_before
-- The state that a step begins from: the session's input, or a snapshot with its changes.
select case when e.state_from is null then array[s.input] else agentq.recall(e.tenant, e.session_id, e.state_from) end,
       e.state_from
  from agentq.ledger_entry e join agentq.session s on s.tenant = e.tenant and s.session_id = e.session_id
 where e.tenant = %(tenant)s and e.session_id = %(session)s and e.step_id = %(step)s;

-- name: state_now
-- The state of the last checkpoint on the session's main line, or its input.
select case when c.step_id is null then array[s.input] else agentq.recall(s.tenant, s.session_id, c.at) end, c.name, c.saved_at,
       c.at
  from agentq.session s
  left join lateral (
    select k.step_id, case k.kind when 'same' then e.state_from else k.step_id end as at, e.name, k.saved_at
      from agentq.checkpoint k
      join agentq.ledger_entry e on e.tenant = k.tenant and e.session_id = k.session_id and e.step_id = k.step_id
     where k.tenant = s.tenant and k.session_id = s.session_id and e.superseded is null and e.join_step is null
       and (k.kind <> 'same' or e.state_from is not null)
     order by e.seq desc limit 1) c on true
 where s.tenant = %(tenant)s and s.session_id = %(session)s;

-- name: undone_after
-- What a replay from a step would take back: how many recorded steps, how many that run, and effects it would recall.
select count(*) filter (where e.state = 'done')::int, count(*) filter (where e.state = 'running')::int,
       (select count(*) from agentq.effect f where f.tenant = %(tenant)s and f.session_id = %(session)s
           and f.state = 'done' and f.step_id in (select agentq.from_step_on(%(tenant)s, %(session)s, %(step)s)))::int,
       (select count(*) from agentq.effect f where f.tenant = %(tenant)s and f.session_id = %(session)s
           and f.state in ('pending', 'unknown')
           and f.step_id in (select agentq.from_step_on(%(tenant)s, %(session)s, %(step)s)))::int
  from agentq.ledger_entry e
 where e.tenant = %(tenant)s and e.session_id = %(session)s
   and e.step_id in (select agentq.from_step_on(%(tenant)s, %(session)s, %(step)s));

-- name: select
-- The sessions that a filter names, by id, so that a program that was interrupted goes on where it was.
select tenant, session_id, agent, state from agentq.session s
 where state = any (%(states)s::text[]) and session_id > %(after)s
   and (%(tenant)s::text is null or tenant = %(tenant)s)
   and (%(agent)s::text is null or agent = %(agent)s)
   and (%(older_s)s::double precision is null
        or created_at <= agentq.now() - make_interval(secs => %(older_s)s::double precision))
   and (%(held_by)s::text is null or hold ->> 'kind' = %(held_by)s)
 order by session_id limit %(limit)s;

-- name: count
select count(*)::int from agentq.session s
 where state = any (%(states)s::text[])
   and (%(tenant)s::text is null or tenant = %(tenant)s)
   and (%(agent)s::text is null or agent = %(agent)s)
   and (%(older_s)s::double precision is null
        or created_at <= agentq.now() - make_interval(secs => %(older_s)s::double precision))
   and (%(held_by)s::text is null or hold ->> 'kind' = %(held_by)s);

-- name: waits
-- Each step that has not ended, with everything that may keep it, for a person who asks why.
select e.step_id, e.seq, e.branch, e.name, e.state, e.attempt, e.attempts_max, e.crashes, e.quarantine, e.fence,
       e.due_at, e.queued_at, e.started_at, e.due_at > agentq.now() as later, e.failure, e.waits_for, e.fan, e.unserved,
       e.timeout_s, e.dispatches,
       w.worker_id, w.host, w.pid, w.worker_group, w.state as worker_state,
       extract(epoch from agentq.now() - w.seen_at)::double precision as silent_s,
       extract(epoch from agentq.now() - e.started_at)::double precision as running_s,
       a.approval_id, a.question, a.groups, a.deadline_at as answer_by, a.state as approval_state,
       t.state as tenant_state, t.concurrency, t.shedding,
       (select count(*) from agentq.ledger_entry o where o.tenant = e.tenant and o.state in ('queued', 'running'))::int
         as admitted,
       case when e.state = 'ready' then (
         select count(*) from agentq.ledger_entry o where o.tenant = e.tenant and o.state = 'ready'
            and o.due_at <= agentq.now() and (o.priority, o.due_at) < (e.priority, e.due_at)) end::int as ahead,
       (select count(*) from agentq.worker o where o.state = 'live' and o.role = 'steps'
           and s.agent || '@' || s.agent_version = any (o.serves)
           and o.worker_group in (case when e.quarantine then 'quarantine' else t.worker_group end, '*'))::int as serving,
       t.worker_group as tenant_group, a.name, a.effect_key, a.args_hash
  from agentq.ledger_entry e
  join agentq.session s on s.tenant = e.tenant and s.session_id = e.session_id
  join agentq.tenant t on t.name = e.tenant
  left join agentq.worker w on w.worker_id = e.worker
  left join agentq.approval a on a.tenant = e.tenant and a.approval_id = e.approval
 where e.tenant = %(tenant)s and e.session_id = %(session)s
   and e.state in ('ready', 'queued', 'running', 'waiting', 'held')
 order by e.seq, e.branch nulls first, e.step_id;

-- name: open_branches
-- Which branches, and which child sessions, a join still waits for.
select b.branch, b.child_session, c.state
  from agentq.branch b
  left join agentq.session c on c.tenant = b.tenant and c.session_id = b.child_session
 where b.tenant = %(tenant)s and b.session_id = %(session)s and b.join_step = %(step)s and b.state = 'open'
 order by b.branch limit 20;

-- name: held
select hold, generation, forked_from, dry_effects, parent_session from agentq.session
 where tenant = %(tenant)s and session_id = %(session)s;
