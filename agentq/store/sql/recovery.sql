-- Pausing, resuming, killing and reopening sessions. What each does stands with its function.

-- name: pause
select * from agentq.pause_session(%(tenant)s, %(session)s, %(hold)s);

-- name: resume
select * from agentq.resume_session(%(tenant)s, %(session)s);

-- name: kill
select * from agentq.kill_session(%(tenant)s, %(session)s, %(failure)s);

-- name: reopen
select * from agentq.reopen_session(%(tenant)s, %(session)s, %(step)s, %(copy)s, %(generation)s::int, %(state)s,
    %(deadline_s)s::double precision);

-- name: paused_with
-- The children that were paused together with this session.
select session_id from agentq.session
 where tenant = %(tenant)s and parent_session = %(session)s and state = 'paused' and hold ->> 'with' = %(session)s::text;
